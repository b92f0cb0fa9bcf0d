#!/bin/sh
# ECS hands secrets over in the environment, entrypoint.sh reads them from files: writes those, and
# goes on without the variables, which every process of the container could read.
set -eu
umask 077
cd /run/secrets
printf %s "$LOOKUP_PASSWORD" >lookup-password
printf '%s\n' "$TLS_CERTIFICATE" >server.pem
printf '%s\n' "$TLS_KEY" >server.key
cp /etc/warm-engine/rds.pem ca.pem
# The console's is for pool_metrics.sh beside it, and nobody else's: a new one at each start.
head -c 24 /dev/urandom | base64 >console-password
unset LOOKUP_PASSWORD TLS_CERTIFICATE TLS_KEY
cd /run/pgbouncer
exec entrypoint.sh
