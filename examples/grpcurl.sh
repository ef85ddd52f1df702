#!/bin/sh
# The same call from grpcurl: sh examples/grpcurl.sh 127.0.0.1:50051 image.dcm
#
# In JSON, a field of bytes is base64. It goes through stdin, because a command line is too short for an image.
# The server has reflection, so that no .proto file is needed. One message holds 4 MiB: larger files go in chunks.
set -eu
address=$1 file=$2

grpcurl -plaintext "$address" deepmcat.v1.CategorizationService/GetArtifact

printf '{"image": {"encoded": "%s"}}' "$(base64 < "$file" | tr -d '\n')" |
    grpcurl -plaintext -d @ "$address" deepmcat.v1.CategorizationService/Categorize
