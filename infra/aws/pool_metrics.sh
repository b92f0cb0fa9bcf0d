#!/bin/sh
# Prints PgBouncer's pool metrics in CloudWatch's embedded metric format every 15 seconds. Runs in
# PgBouncer's task and reads the console's password that fargate.sh wrote.
export PGHOST=127.0.0.1 PGPORT="${PGPORT:-6432}" PGUSER=console PGDATABASE=pgbouncer
trap exit INT TERM # process 1 ignores them by default, and ECS would wait for its time-out
while :; do
  now=$(date +%s)000
  PGPASSWORD=$(cat /run/secrets/console-password) \
    psql --no-psqlrc --no-align --field-separator=, --pset=footer=off --command='SHOW POOLS' |
    awk -F, -v now="$now" -v cluster="$CLUSTER" '
      # By name, because versions of PgBouncer add columns.
      NR == 1 { for (i = 1; i <= NF; i++) column[$i] = i; next }
      $column["user"] != "appuser" { next }
      {
        waiting += $column["cl_waiting"]; active += $column["sv_active"]
        clients += $column["cl_active"]
        wait = $column["maxwait"] + $column["maxwait_us"] / 1000000
        if (wait > longest) longest = wait
      }
      END {
        if (NR == 0) exit # no response: no line, so the alarm for missing data fires
        printf "{\"_aws\":{\"Timestamp\":%s,\"CloudWatchMetrics\":[{\"Namespace\":\"WarmEngine\",", now
        printf "\"Dimensions\":[[\"Cluster\"]],\"Metrics\":[{\"Name\":\"cl_waiting\"},{\"Name\":\"cl_active\"},"
        printf "{\"Name\":\"sv_active\"},{\"Name\":\"maxwait\",\"Unit\":\"Seconds\"}]}]},"
        printf "\"Cluster\":\"%s\",\"cl_waiting\":%d,\"cl_active\":%d,\"sv_active\":%d,\"maxwait\":%.3f}\n",
          cluster, waiting, clients, active, longest
      }'
  sleep 15 &
  wait # unlike sleep, a trap interrupts it
done
