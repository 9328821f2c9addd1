-- Takes up to `most` due and free rows of a lane, rung or not; the answer is that of `claim_1`.
-- Clients with rows in this lane, by one index probe each; from each its share, oldest first. What was rung is at
-- most 10 s ahead in wake_at; what is leased or scheduled lies further ahead but for a bounded few.
CREATE FUNCTION notifications_top_up_1(of_channel text, of_lane text, most int, lease_s float8) RETURNS json
  LANGUAGE plpgsql
  SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off
  SET enable_mergejoin = off SET jit = off
AS $$
DECLARE
  me uuid[];
BEGIN
  WITH RECURSIVE c AS (
    (SELECT client_id FROM notifications_pending WHERE channel = of_channel AND lane = of_lane
      ORDER BY client_id LIMIT 1)
    UNION ALL
    SELECT (SELECT t.client_id FROM notifications_pending t
             WHERE t.channel = of_channel AND t.lane = of_lane AND t.client_id > c.client_id
             ORDER BY t.client_id LIMIT 1) FROM c WHERE c.client_id IS NOT NULL
  )
  SELECT array_agg(p.id) INTO me FROM (
    SELECT r.id FROM (SELECT client_id FROM c WHERE client_id IS NOT NULL ORDER BY random()) c
     CROSS JOIN LATERAL (
       SELECT t.id FROM notifications_pending t
        WHERE t.channel = of_channel AND t.lane = of_lane AND t.client_id = c.client_id
          AND t.wake_at <= now() + interval '10 seconds'
          AND t.due_at <= now() AND t.lease_until IS NULL AND t.crashes = 0
        ORDER BY t.wake_at
        LIMIT greatest(1, most / (SELECT count(*) FROM c WHERE client_id IS NOT NULL))
        FOR UPDATE SKIP LOCKED) r
     LIMIT most) p;
  RETURN CASE WHEN me IS NOT NULL THEN notifications_claim_1(me, false, lease_s) END;
END $$;
