#!/bin/sh
# PgBouncer's queue as a line of CloudWatch's embedded metric format, each 15 seconds, on stdout.
# Runs beside PgBouncer in its task, and learns the console's password as fargate.sh wrote it.
export PGHOST=127.0.0.1 PGPORT="${PGPORT:-6432}" PGUSER=console PGDATABASE=pgbouncer
trap exit INT TERM # as process 1 it would otherwise be deaf, and ECS wait for its patience's end
while :; do
  now=$(date +%s)000
  PGPASSWORD=$(cat /run/secrets/console-password) \
    psql --no-psqlrc --no-align --field-separator=, --pset=footer=off --command='SHOW POOLS' |
    awk -F, -v now="$now" -v cluster="$CLUSTER" '
      # By name: each version of PgBouncer adds columns.
      NR == 1 { for (i = 1; i <= NF; i++) column[$i] = i; next }
      $column["user"] != "appuser" { next }
      {
        waiting += $column["cl_waiting"]; active += $column["sv_active"]
        wait = $column["maxwait"] + $column["maxwait_us"] / 1000000
        if (wait > longest) longest = wait
      }
      END {
        if (NR == 0) exit # it did not answer: no line, and the alarm rings for want of data
        printf "{\"_aws\":{\"Timestamp\":%s,\"CloudWatchMetrics\":[{\"Namespace\":\"WarmEngine\",", now
        printf "\"Dimensions\":[[\"Cluster\"]],\"Metrics\":[{\"Name\":\"cl_waiting\"},"
        printf "{\"Name\":\"sv_active\"},{\"Name\":\"maxwait\",\"Unit\":\"Seconds\"}]}]},"
        printf "\"Cluster\":\"%s\",\"cl_waiting\":%d,\"sv_active\":%d,\"maxwait\":%.3f}\n",
          cluster, waiting, active, longest
      }'
  sleep 15 &
  wait # a trap waits for a program, and interrupts this
done
