#!/usr/bin/env bash
# What a deployment is protected by, made with openssl and ssh-keygen:
#
#   bash certificates.sh FOLDER NODES [NAME ...]
#
# FOLDER/ca.crt                  goes to every SuperNode and to whoever types `flwr run`: what they know the SuperLink by
# FOLDER/server.pem, server.key  stay with the SuperLink, which is reached under each NAME (DNS name or IP address)
# FOLDER/node-0, node-1, ...     one private key for each SuperNode; its public half, node-0.pub, is registered
#
# ca.key signs certificates for more SuperLinks; keep it off the machines that run anything. Files that exist are kept.
set -euo pipefail
umask 077

folder=$1 nodes=$2
shift 2
mkdir -p "$folder"

names="DNS:localhost,IP:127.0.0.1"
for name in "$@"; do
    if [[ $name =~ ^[0-9.]+$ || $name == *:* ]]; then names+=",IP:$name"; else names+=",DNS:$name"; fi
done

if [[ ! -e $folder/ca.crt ]]; then
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-384 -nodes -days 365 -subj "/CN=fedpfn deployment" \
        -keyout "$folder/ca.key" -out "$folder/ca.crt" 2> /dev/null
fi
if [[ ! -e $folder/server.pem ]]; then
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-384 -nodes -subj "/CN=SuperLink" \
        -keyout "$folder/server.key" -out "$folder/server.csr" 2> /dev/null
    openssl x509 -req -days 365 -in "$folder/server.csr" -CA "$folder/ca.crt" -CAkey "$folder/ca.key" -CAcreateserial \
        -extfile <(echo "subjectAltName=$names") -out "$folder/server.pem" 2> /dev/null
    rm "$folder/server.csr"
fi
for ((node = 0; node < nodes; node++)); do
    [[ -e $folder/node-$node ]] || ssh-keygen -q -t ecdsa -b 384 -N "" -C "node-$node" -f "$folder/node-$node"
done
