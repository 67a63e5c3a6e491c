#!/usr/bin/env bash
# gsqtok study headtohead in pieces, on GPUs that are there for a while: what was measured is kept, and the next piece,
# on another machine too, goes on from it.
#
#   docs/plots/headtohead.sh SECONDS FOLDER TINY_IMAGENET [OPTION ...]
#
# No run begins after SECONDS, and what is running then is finished: a piece takes as much longer as one run does.
# OPTIONs go to gsqtok study, such as --steps 200 --prior-steps 300 --only f=8 rate=0.28 rate=0.56.
# FOLDER/outcomes.tgz holds all that is measured, a few KB for each run; where it is and the runs are not, it is unpacked.
# FOLDER/headtohead-small has the page.
set -euo pipefail
seconds=$1 folder=$2 images=$3
shift 3
gsqtok=${GSQTOK:-gsqtok}
mkdir -p "$folder"
test -d "$folder/runs" || ! test -s "$folder/outcomes.tgz" || tar xzf "$folder/outcomes.tgz" -C "$folder"
status=0
$gsqtok study headtohead --data "$images" -o "$folder" --seconds "$seconds" "$@" || status=$?
(cd "$folder" && find runs \( -name outcome.json -o -name 'prior-*.json' -o -name images.png \) -print0 |
  tar czf outcomes.tgz.new --null -T - && mv outcomes.tgz.new outcomes.tgz)
exit $status
