-- What a relay has to see to: {lanes: [[channel, lane]] with rows, expansions: [[id, client_id]] to be rung now,
-- receipts: whether any is to be settled}. Expansions that are rung are left alone for `again_s`; as with
-- deliveries, `most` of them at a time are out, shared between the clients.
CREATE FUNCTION notifications_due_2(channels text[], lanes text[], again_s float8, most int) RETURNS json
  LANGUAGE plpgsql
  SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off
  SET enable_mergejoin = off SET jit = off
AS $$
DECLARE
  found json;
  clients int[];
  rung int;
  expansions json;
BEGIN
  -- Not EXISTS, which becomes a join: planned for an empty table, that reads Pending from its beginning for each lane.
  SELECT json_agg(json_build_array(v.channel, v.lane)) INTO found FROM unnest(channels, lanes) AS v(channel, lane)
   CROSS JOIN LATERAL (
     SELECT 1 FROM notifications_pending p WHERE p.channel = v.channel AND p.lane = v.lane LIMIT 1) has_rows;
  WITH RECURSIVE c AS (
    (SELECT client_id FROM notifications_expansion ORDER BY client_id LIMIT 1)
    UNION ALL
    SELECT (SELECT t.client_id FROM notifications_expansion t WHERE t.client_id > c.client_id
             ORDER BY t.client_id LIMIT 1) FROM c WHERE c.client_id IS NOT NULL
  )
  SELECT array_agg(client_id ORDER BY random()) INTO clients FROM c WHERE client_id IS NOT NULL;
  IF clients IS NOT NULL THEN
    SELECT count(*) INTO rung FROM (
      SELECT 1 FROM unnest(clients) AS c(client_id) CROSS JOIN LATERAL (
        SELECT 1 FROM notifications_expansion t
         WHERE t.client_id = c.client_id AND t.wake_at > now() AND t.wake_at <= now() + again_s * interval '1 second'
           AND t.due_at <= now() LIMIT most) r
       LIMIT most) r;
    WITH pick AS MATERIALIZED (
      SELECT r.id FROM unnest(clients) AS c(client_id) CROSS JOIN LATERAL (
        SELECT t.id FROM notifications_expansion t WHERE t.client_id = c.client_id AND t.wake_at <= now()
         ORDER BY t.wake_at LIMIT greatest(1, most / cardinality(clients))
         FOR UPDATE SKIP LOCKED) r
       LIMIT most - rung
    ), out AS (
      UPDATE notifications_expansion e SET wake_at = now() + again_s * interval '1 second'
       WHERE e.id = ANY (ARRAY(SELECT id FROM pick)) RETURNING e.id, e.client_id)
    SELECT json_agg(json_build_array(id, client_id)) INTO expansions FROM out;
  END IF;
  RETURN json_build_object(
    'lanes', coalesce(found, '[]'), 'expansions', coalesce(expansions, '[]'),
    'receipts', EXISTS (SELECT 1 FROM notifications_receiptinbox WHERE wake_at <= now()));
END $$;
