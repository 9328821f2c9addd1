-- Takes those of `ids` that are due and free: what `gates_2` says of them, with {taken: [[id, claim_no, tries,
-- crashes, lane, waiting]]}; without `read` when there is none.
CREATE FUNCTION notifications_claim_2(ids uuid[], alone boolean, lease_s float8) RETURNS json LANGUAGE plpgsql
  SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off
  SET enable_mergejoin = off SET jit = off
AS $$
DECLARE
  me uuid[];
  taken json;
BEGIN
  SELECT array_agg(p.id ORDER BY p.id) INTO me FROM (
    SELECT id FROM notifications_pending
     WHERE id = ANY (ids) AND due_at <= now() AND lease_until IS NULL AND (crashes = 0 OR alone)
     ORDER BY id FOR UPDATE SKIP LOCKED) p;
  IF me IS NULL THEN
    RETURN json_build_object('taken', json_build_array());
  END IF;
  WITH t AS (
    UPDATE notifications_pending p
       SET claim_no = p.claim_no + 1, lease_until = now() + lease_s * interval '1 second',
           wake_at = now() + lease_s * interval '1 second'
     WHERE p.id = ANY (me)
    RETURNING p.id, p.claim_no, p.tries, p.crashes, p.lane, p.waiting)
  SELECT json_agg(json_build_array(t.id, t.claim_no, t.tries, t.crashes, t.lane, t.waiting)) INTO taken FROM t;
  RETURN json_build_object('taken', taken, 'read', notifications_gates_2(me));
END $$;
