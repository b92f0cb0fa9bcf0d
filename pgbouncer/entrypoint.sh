#!/bin/sh
# Writes what differs between places (see pgbouncer.ini) and becomes PgBouncer.
# DB_HOST, DB_PORT, DB_NAME: the Postgres behind it. In /run/secrets: lookup-password and
# console-password, server.pem and server.key for clients, ca.pem to know Postgres by.
set -eu
umask 077
secret() {
  [ -s "/run/secrets/$1" ] || { echo "entrypoint: /run/secrets/$1 is missing or empty" >&2; exit 1; }
  # As PgBouncer reads it: a quotation mark is doubled.
  sed 's/"/""/g' "/run/secrets/$1"
}
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
; A burst of logins would otherwise give the lookup a pool as large as the application's.
[users]
pooler_lookup = max_user_connections=2
END
exec pgbouncer /etc/pgbouncer/pgbouncer.ini
