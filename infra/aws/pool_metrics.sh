# PgBouncer's queue as a line of CloudWatch's embedded metric format, each 15 seconds, on stdout.
# Beside PgBouncer in its task; who and where is in PGHOST, PGPORT, PGUSER, PGPASSWORD, PGSSLMODE.
while :; do
  # The application's pool alone; the console has no WHERE. Columns by name: each version adds some.
  psql --no-psqlrc --no-align --field-separator=, --pset=footer=off --dbname=pgbouncer \
    --command='SHOW POOLS' |
    awk -F, -v now="$(date +%s)000" -v cluster="$CLUSTER" '
      NR == 1 { for (i = 1; i <= NF; i++) column[$i] = i; next }
      $column["user"] == "pooler_lookup" || $column["database"] == "pgbouncer" { next }
      {
        waiting += $column["cl_waiting"]; active += $column["sv_active"]
        wait = $column["maxwait"] + $column["maxwait_us"] / 1000000
        if (wait > longest) longest = wait
      }
      END {
        if (NR == 0) exit  # PgBouncer did not answer: no line, and the alarm says so
        printf "{\"_aws\":{\"Timestamp\":%s,\"CloudWatchMetrics\":[{\"Namespace\":\"WarmEngine\",", now
        printf "\"Dimensions\":[[\"Cluster\"]],\"Metrics\":[{\"Name\":\"cl_waiting\"},"
        printf "{\"Name\":\"sv_active\"},{\"Name\":\"maxwait\",\"Unit\":\"Seconds\"}]}]},"
        printf "\"Cluster\":\"%s\",\"cl_waiting\":%d,\"sv_active\":%d,\"maxwait\":%.3f}\n",
          cluster, waiting, active, longest
      }'
  sleep "${EVERY:-15}"
done
