#!/bin/sh
# Writes site.ini and the user list, then executes PgBouncer. `entrypoint.sh reload` in a running
# container makes PgBouncer read new files of /run/secrets, if it could start with them.
# DB_HOST, DB_PORT, DB_NAME: the Postgres behind it. /run/secrets contains lookup-password,
# console-password, server.pem and server.key for clients, and ca.pem to verify Postgres.
set -eu
umask 077
secret() {
  [ -s "/run/secrets/$1" ] || { echo "entrypoint: /run/secrets/$1 is missing or empty" >&2; exit 1; }
  # PgBouncer expects doubled quotation marks.
  sed 's/"/""/g' "/run/secrets/$1"
}
# Reject values that would add a line or an option to the file below.
case "$DB_NAME$DB_HOST$DB_PORT" in
  *[!A-Za-z0-9._:-]*) echo "entrypoint: DB_NAME, DB_HOST or DB_PORT holds more than letters, digits and ._:-" >&2; exit 1 ;;
esac
lookup=$(secret lookup-password)
console=$(secret console-password)

cp /etc/pgbouncer/1.21.ini version.ini
printf '"pooler_lookup" "%s"\n"console" "%s"\n' "$lookup" "$console" >userlist.txt
cat >site.ini <<END
listen_addr = *
listen_port = 6432
admin_users = console
client_tls_cert_file = /run/secrets/server.pem
client_tls_key_file = /run/secrets/server.key
server_tls_sslmode = verify-full
server_tls_ca_file = /run/secrets/ca.pem
server_tls_protocols = tlsv1.3
[databases]
$DB_NAME = host=$DB_HOST port=$DB_PORT auth_user=pooler_lookup
; Without a limit, a burst of logins opens as many connections for the lookup as for the application.
[users]
pooler_lookup = max_user_connections=2
END
if [ "${1-}" = reload ]; then
  # PgBouncer reports success for a RELOAD with an unusable certificate, keeps the old one, and fails
  # at its next start. So first start one that does not listen, which only loads the TLS files.
  printf '[pgbouncer]\nunix_socket_dir =\n' >trial.ini
  grep '_tls_' /etc/pgbouncer/pgbouncer.ini site.ini | sed 's/^[^:]*://' >>trial.ini
  said=$(pgbouncer trial.ini 2>&1) || true
  case $said in
    *"nowhere to listen on"*) kill -HUP "$(cat pid)"; exit ;;
    *) printf 'entrypoint: not reloaded: %s\n' "$said" >&2; exit 1 ;;
  esac
fi
echo $$ >pid # stays the same after exec
exec pgbouncer /etc/pgbouncer/pgbouncer.ini
