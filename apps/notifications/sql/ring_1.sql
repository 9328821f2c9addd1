-- The rows of a queue that are to be rung now, at most `most`, and no more than make `watermark` rung and unclaimed:
-- {picked: [[id, client_id, claim_no, crashes, was_leased]], holds: [[scope, subject, action, reason]]}.
-- Null when another relay is at this queue. Takes the queue's lock for the transaction.
--
-- One client's share is the whole divided by how many have work. A lease that is over is given back here, but not in
-- the first `restart_grace_s` of a restarted database: the workers' results are still on their way.
CREATE FUNCTION notifications_ring_1(
  of_channel text, of_lane text, rung_s float8, watermark int, most int, restart_grace_s float8
) RETURNS json LANGUAGE plpgsql
  SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off
  SET enable_mergejoin = off SET jit = off
AS $$
DECLARE
  gives_back boolean := pg_postmaster_start_time() <= now() - restart_grace_s * interval '1 second';
  clients int[];
  waiting int;
  room int;
  picked json;
BEGIN
  IF NOT pg_try_advisory_xact_lock(hashtext(of_channel || '.' || of_lane)) THEN
    RETURN NULL;
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
  IF clients IS NULL THEN
    RETURN json_build_object('picked', json_build_array());
  END IF;
  SELECT count(*) INTO waiting FROM (
    SELECT 1 FROM unnest(clients) AS c(client_id) CROSS JOIN LATERAL (
      SELECT 1 FROM notifications_pending t
       WHERE t.channel = of_channel AND t.lane = of_lane AND t.client_id = c.client_id
         AND t.wake_at > now() AND t.wake_at <= now() + rung_s * interval '1 second'
         AND t.lease_until IS NULL AND t.due_at <= now() AND t.crashes = 0 LIMIT watermark) r
     LIMIT watermark) rung;
  room := least(most, watermark - waiting);
  WITH pick AS MATERIALIZED (
    SELECT r.id, r.was_leased FROM unnest(clients) AS c(client_id)
     CROSS JOIN LATERAL (
       SELECT t.id, t.lease_until IS NOT NULL AS was_leased FROM notifications_pending t
        WHERE t.channel = of_channel AND t.lane = of_lane AND t.client_id = c.client_id AND t.wake_at <= now()
          AND (t.lease_until IS NULL OR (t.lease_until <= now() AND gives_back))
        ORDER BY t.wake_at
        LIMIT greatest(1, room / cardinality(clients))
        FOR UPDATE SKIP LOCKED) r
     LIMIT room
  ), rung AS (
    UPDATE notifications_pending p
       SET wake_at = now() + rung_s * interval '1 second', crashes = p.crashes + (p.lease_until IS NOT NULL)::int,
           lease_until = NULL
     WHERE p.id = ANY (ARRAY(SELECT id FROM pick))
    RETURNING p.id, p.client_id, p.claim_no, p.crashes,
              p.id = ANY (ARRAY(SELECT id FROM pick WHERE pick.was_leased)) AS was_leased)
  SELECT json_agg(json_build_array(id, client_id, claim_no, crashes, was_leased)) INTO picked FROM rung;
  RETURN json_build_object(
    'picked', coalesce(picked, '[]'),
    'holds', CASE WHEN picked IS NOT NULL THEN (
      SELECT json_agg(json_build_array(h.scope, h.subject, h.action, h.reason))
        FROM notifications_hold h WHERE h.scope <> 'account') END);
END $$;
