"""Add a function that places an order once, so that a replay does not use up an id.

It is compatible with older code, which continues to insert keys with its own statement.
"""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

# Several statements, each with its own snapshot: within one, a default is evaluated before ON
# CONFLICT, and rows that it inserted or waited for are not visible. SECURITY DEFINER, because the
# application may not change the order of a key.
FUNCTION = """
CREATE FUNCTION place_order(
  request_key text, body text, name text, state text,
  OUT order_id integer, OUT is_new boolean, OUT is_same_body boolean
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  LOOP
    -- A concurrent request with the same key waits here for this transaction to end.
    INSERT INTO public.order_requests (key, body_sha256, order_id)
    VALUES (request_key, body, 0) ON CONFLICT (key) DO NOTHING;
    is_new := FOUND;
    IF is_new THEN
      INSERT INTO public.orders (customer_name, status) VALUES (name, state)
      RETURNING id INTO order_id;
      UPDATE public.order_requests AS claim SET order_id = place_order.order_id
      WHERE claim.key = request_key;
      is_same_body := true;
      RETURN;
    END IF;
    SELECT claim.order_id, claim.body_sha256 = body INTO order_id, is_same_body
    FROM public.order_requests AS claim WHERE claim.key = request_key;
    EXIT WHEN FOUND; -- otherwise the key was deleted in between
  END LOOP;
END $$
"""


def upgrade() -> None:
    op.execute(FUNCTION)
    op.execute("REVOKE ALL ON FUNCTION place_order FROM PUBLIC")
    op.execute("GRANT EXECUTE ON FUNCTION place_order TO appuser")


def downgrade() -> None:
    op.execute("DROP FUNCTION place_order")
