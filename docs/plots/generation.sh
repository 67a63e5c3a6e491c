#!/usr/bin/env bash
# The three heads on Tiny ImageNet, and compressed files with a prior: the tables and images of docs/results/generation.md.
#
#   docs/plots/generation.sh heads FOLDER TINY_IMAGENET [OPTION ...]      tokens of 64 px, three priors, samples
#   docs/plots/generation.sh files FOLDER PHOTOS IMAGES [OPTION ...]      tokens of 256 px, a prior, files of IMAGES
#
# OPTIONs go to every gsqtok prior train, such as --steps 1000. MODEL=runs/mine names another tokenizer than the embedded
# one, HEADS some of the heads, SAMPLES how many images the Frechet distance takes (5000), FEATURES its network, CODECS those
# beside the files; a folder goes on where it was left, so that CODECS= first and the codecs later keeps a GPU free of them.
set -euo pipefail
what=$1 folder=$2
mkdir -p "$folder"
gsqtok=${GSQTOK:-gsqtok}
model=${MODEL:-}
features=${FEATURES:-timm:tf_efficientnet_lite0}
tokenize() { # SOURCE OUTPUT SIZE [OPTION ...]
  local source=$1 output=$2 size=$3
  shift 3
  test -s "$output/manifest.json" || $gsqtok tokenize $model "$source" -o "$output" --size "$size" "$@"
}

if [ "$what" = heads ]; then
  images=$3
  shift 3
  tokenize "$images" "$folder/train" 64 --split train --flip
  tokenize "$images" "$folder/validation" 64 --split validation
  for head in ${HEADS:-depth parallel masked}; do
    run="$folder/$head"
    test -d "$run/prior" || $gsqtok prior train prior-64 --data.train "$folder/train" --data.validation \
      "$folder/validation" --data.label label --model.head $head --output "$run" "$@"
    $gsqtok prior evaluate "$run" "$folder/validation" --label label --samples "${SAMPLES:-5000}" --batch-size 500 \
      --images "$images" --split validation --features "$features" -o "$folder/$head.json"
    $gsqtok prior sample "$run" $model -o "$folder/$head.png" --number 64 --top-k 2000 --guidance 2 --steps 24 \
      --classes 1 20 40 60 80 100 120 140
  done
elif [ "$what" = files ]; then
  photos=$3 images=$4
  shift 4
  tokenize "$photos" "$folder/photos" 256 --flip
  tokenize "$images" "$folder/images" 256 --split validation
  test -d "$folder/prior/prior" || $gsqtok prior train prior-256 --data.train "$folder/photos" --data.validation \
    "$folder/images" --output "$folder/prior" "$@"
  $gsqtok prior evaluate "$folder/prior" "$folder/images" --batch-size 16 -o "$folder/prior.json"
  for way in "--frequencies static" "--frequencies adaptive" "--prior $folder/prior"; do
    $gsqtok compress $model "$images" --split validation --size 256 --crop center -o "$folder/images.gsq" $way
  done
  # compressed where the tokenizer runs, decompressed on the CPU, which checks every token: small images, as it takes long
  $gsqtok compress $model "$images" --split validation --size 64 --crop center -o "$folder/small.gsq" --prior "$folder/prior"
  ${PYTHON:-python} - "$folder/small.gsq" > "$folder/names" <<'END'
import sys
from gsqtok.generation import CompressedFile
print(*CompressedFile(sys.argv[1]).header.names[:16], sep="\n")
END
  mapfile -t names < "$folder/names"
  $gsqtok decompress $model "$folder/small.gsq" -o "$folder/decompressed" --prior "$folder/prior" --device cpu \
    --only "${names[@]}"
  $gsqtok evaluate $model "$images" --split validation --size 256 --crop center --features none --perceptual \
    --prior "$folder/prior" -o "$folder/files.json"
  rate=$(${PYTHON:-python} -c "import json, sys; print(json.load(open(sys.argv[1]))['metrics']['bits_per_pixel'])" \
    "$folder/files.json")
  for codec in ${CODECS-webp avif jpeg}; do
    $gsqtok evaluate "codec:$codec@$rate" "$images" --split validation --size 256 --crop center --features none \
      --perceptual -o "$folder/codec-$codec.json"
  done
  test -z "${CODECS-all}" || $gsqtok compare "$folder"/files.json "$folder"/codec-*.json -o "$folder/report" --markdown
else
  echo "the first argument is heads or files" >&2
  exit 2
fi
