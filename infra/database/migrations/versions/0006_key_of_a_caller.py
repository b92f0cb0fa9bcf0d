"""Scope idempotency keys to callers: two callers with the same key place two orders.

During a deployment older code, which uses `ON CONFLICT (key)`, runs beside newer code, so `key`
stays unique. The row of a caller has a derived key that no request can send, and a second row with
the plain key is for older code. A key that older code inserted (`caller` is NULL) belongs to the
first caller who sends it with the same body. A later migration may drop the second rows.
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

# SECURITY DEFINER and several statements, as in 0005. The key is inserted first, so that concurrent
# requests with the same key wait for each other even if rows are deleted meanwhile.
FUNCTION = """
CREATE FUNCTION place_order(
  request_caller text, request_key text, body text, name text, state text,
  OUT order_id integer, OUT is_new boolean, OUT is_same_body boolean
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  own_key text := E'\\n' || encode(
    sha256(convert_to(request_caller || E'\\n' || request_key, 'UTF8')), 'hex');
  both_rows text[] := ARRAY[own_key];
BEGIN
  LOOP
    INSERT INTO public.order_requests (key, caller, body_sha256, order_id)
    VALUES (own_key, request_caller, body, 0) ON CONFLICT (key) DO NOTHING;
    is_new := FOUND;
    EXIT WHEN is_new;
    SELECT claim.order_id, claim.body_sha256 = body INTO order_id, is_same_body
    FROM public.order_requests AS claim WHERE claim.key = own_key;
    IF FOUND THEN
      RETURN;
    END IF; -- otherwise the key was deleted in between
  END LOOP;

  INSERT INTO public.order_requests (key, caller, body_sha256, order_id)
  VALUES (request_key, request_caller, body, 0) ON CONFLICT (key) DO NOTHING;
  IF FOUND THEN
    both_rows := both_rows || request_key;
  ELSE
    SELECT claim.order_id, claim.body_sha256 = body INTO order_id, is_same_body
    FROM public.order_requests AS claim
    WHERE claim.key = request_key AND claim.caller IS NULL FOR UPDATE;
    IF FOUND THEN
      is_new := false;
      IF is_same_body THEN
        UPDATE public.order_requests AS claim
        SET order_id = place_order.order_id, caller = request_caller
        WHERE claim.key IN (own_key, request_key);
      ELSE
        DELETE FROM public.order_requests AS claim WHERE claim.key = own_key;
      END IF;
      RETURN;
    END IF;
  END IF;

  INSERT INTO public.orders (customer_name, status) VALUES (name, state)
  RETURNING id INTO order_id;
  UPDATE public.order_requests AS claim SET order_id = place_order.order_id
  WHERE claim.key = ANY (both_rows);
  is_same_body := true;
END $$
"""
SIGNATURE = "place_order(text, text, text, text, text)"


def upgrade() -> None:
    op.add_column("order_requests", sa.Column("caller", sa.Text))
    op.execute(FUNCTION)
    op.execute(f"REVOKE ALL ON FUNCTION {SIGNATURE} FROM PUBLIC")
    op.execute(f"GRANT EXECUTE ON FUNCTION {SIGNATURE} TO appuser")


def downgrade() -> None:
    op.execute(f"DROP FUNCTION {SIGNATURE}")
    op.execute("DELETE FROM order_requests WHERE key LIKE E'\\n%'")
    op.drop_column("order_requests", "caller")
