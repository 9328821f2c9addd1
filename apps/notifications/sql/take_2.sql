-- Takes those of `ids` that are due and free, then what the lanes hold, in their order, rung or not, until there are
-- `most`: {taken: [[id, claim_no, tries, crashes, lane, waiting]], is_all: whether the lanes hold no more, read: what
-- `gates_2` says of them, absent when there is none}.
--
-- Of a lane each client with rows in it, found by one index probe each, gives its share, oldest first, and again while
-- somebody has more. What was rung is at most 10 s ahead in wake_at; what is leased or scheduled lies further ahead
-- but for a bounded few.
CREATE FUNCTION notifications_take_2(ids uuid[], of_channel text, lanes text[], most int, lease_s float8) RETURNS json
  LANGUAGE plpgsql
  SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off
  SET enable_mergejoin = off SET jit = off
AS $$
DECLARE
  until timestamptz := now() + lease_s * interval '1 second';
  me uuid[] := '{}';
  picked uuid[];
  part json[];
  taken json[] := '{}';
  is_all boolean := true;
  of_lane text;
  clients int[];
  share int;
  fullest int;
BEGIN
  IF cardinality(ids) > 0 THEN
    SELECT array_agg(p.id) INTO picked FROM (
      SELECT id FROM notifications_pending
       WHERE id = ANY (ids) AND due_at <= now() AND lease_until IS NULL AND crashes = 0
       ORDER BY id FOR UPDATE SKIP LOCKED) p;
    IF picked IS NOT NULL THEN
      WITH t AS (
        UPDATE notifications_pending p SET claim_no = p.claim_no + 1, lease_until = until, wake_at = until
         WHERE p.id = ANY (picked)
        RETURNING p.id, p.claim_no, p.tries, p.crashes, p.lane, p.waiting)
      SELECT array_agg(json_build_array(t.id, t.claim_no, t.tries, t.crashes, t.lane, t.waiting)) INTO taken FROM t;
      me := picked;
    END IF;
  END IF;
  FOREACH of_lane IN ARRAY lanes LOOP
    LOOP
      IF cardinality(me) >= most THEN
        is_all := false;
        EXIT;
      END IF;
      WITH RECURSIVE c AS (
        (SELECT client_id FROM notifications_pending WHERE channel = of_channel AND lane = of_lane
          ORDER BY client_id LIMIT 1)
        UNION ALL
        SELECT (SELECT t.client_id FROM notifications_pending t
                 WHERE t.channel = of_channel AND t.lane = of_lane AND t.client_id > c.client_id
                 ORDER BY t.client_id LIMIT 1) FROM c WHERE c.client_id IS NOT NULL
      )
      SELECT array_agg(client_id ORDER BY random()) INTO clients FROM c WHERE client_id IS NOT NULL;
      EXIT WHEN clients IS NULL;
      share := greatest(1, (most - cardinality(me)) / cardinality(clients));
      WITH pick AS MATERIALIZED (
        SELECT c.client_id, r.id FROM unnest(clients) AS c(client_id)
         CROSS JOIN LATERAL (
           SELECT t.id FROM notifications_pending t
            WHERE t.channel = of_channel AND t.lane = of_lane AND t.client_id = c.client_id
              AND t.wake_at <= now() + interval '10 seconds'
              AND t.due_at <= now() AND t.lease_until IS NULL AND t.crashes = 0
            ORDER BY t.wake_at LIMIT share FOR UPDATE SKIP LOCKED) r
         LIMIT most - cardinality(me))
      SELECT array_agg(pick.id),
             (SELECT max(of_one.n) FROM (SELECT count(*) AS n FROM pick GROUP BY pick.client_id) of_one)
        INTO picked, fullest FROM pick;
      EXIT WHEN picked IS NULL;
      WITH t AS (
        UPDATE notifications_pending p SET claim_no = p.claim_no + 1, lease_until = until, wake_at = until
         WHERE p.id = ANY (picked)
        RETURNING p.id, p.claim_no, p.tries, p.crashes, p.lane, p.waiting)
      SELECT array_agg(json_build_array(t.id, t.claim_no, t.tries, t.crashes, t.lane, t.waiting)) INTO part FROM t;
      taken := taken || part;
      me := me || picked;
      EXIT WHEN fullest < share;
    END LOOP;
  END LOOP;
  IF me = '{}' THEN
    RETURN json_build_object('taken', json_build_array(), 'is_all', is_all);
  END IF;
  RETURN json_build_object(
    'taken', array_to_json(taken), 'is_all', is_all,
    'read', notifications_gates_2(ARRAY(SELECT m.id FROM unnest(me) AS m(id) ORDER BY m.id)));
END $$;
