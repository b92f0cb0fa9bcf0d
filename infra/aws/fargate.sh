#!/bin/sh
# ECS passes secrets in the environment, but entrypoint.sh reads files. Writes the files and unsets the
# variables, which every process of the container could read.
set -eu
umask 077
cd /run/secrets
printf %s "$LOOKUP_PASSWORD" >lookup-password
printf '%s\n' "$TLS_CERTIFICATE" >server.pem
printf '%s\n' "$TLS_KEY" >server.key
cp /etc/warm-engine/rds.pem ca.pem
# The console's password is only for pool_metrics.sh: a new one at each start.
head -c 24 /dev/urandom | base64 >console-password
unset LOOKUP_PASSWORD TLS_CERTIFICATE TLS_KEY
cd /run/pgbouncer
exec entrypoint.sh
