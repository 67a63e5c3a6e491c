#!/usr/bin/env bash
# A tokenizer against JPEG, WebP and AVIF at 0.25 to 2 bits/px: the table and docs/images/codecs.png of docs/results.md.
#
#   docs/plots/codecs.sh FOLDER SOURCE [OPTION ...]
#
# writes FOLDER/*.json, FOLDER/report/ (1 bit/px) and FOLDER/all/ (every rate), and prints both tables.
# OPTIONs go to every gsqtok evaluate, such as --split validation; MODEL=runs/mine names another tokenizer than the
# embedded one. The codecs' results that FOLDER holds are kept, so another tokenizer is measured in a fraction of the
# time (remove them where the report should show that tokenizer's own best and worst images).
set -euo pipefail
folder=$1 source=$2
shift 2
mkdir -p "$folder"
gsqtok=${GSQTOK:-gsqtok}
$gsqtok evaluate ${MODEL:-} "$source" "$@" --features none -o "$folder/tokenizer.json"
for codec in jpeg webp avif; do
  for rate in 0.25 0.5 1.0 2.0; do
    result="$folder/$codec-$rate.json"
    test -s "$result" || $gsqtok evaluate "codec:$codec@$rate" "$source" "$@" --features none -o "$result" \
      --images-as "$folder/tokenizer.json"
  done
done
$gsqtok compare "$folder"/{tokenizer,jpeg-1.0,webp-1.0,avif-1.0}.json -o "$folder/report" --markdown
$gsqtok compare "$folder/tokenizer.json" "$folder"/{jpeg,webp,avif}-{0.25,0.5,1.0,2.0}.json -o "$folder/all" --markdown
