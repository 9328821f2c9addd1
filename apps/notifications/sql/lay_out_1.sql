-- Deliveries, what is to be sent of them, and the tally, from planned rows: {outlines, rows, wake_in}.
-- Returns [[id, channel]] of the new ones that are to be sent. Laying out the same rows again inserts nothing.
CREATE FUNCTION notifications_lay_out_1(doc jsonb) RETURNS jsonb LANGUAGE plpgsql
  SET plan_cache_mode = force_generic_plan SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
DECLARE
  queued jsonb;
BEGIN
  WITH o AS MATERIALIZED (
    SELECT * FROM jsonb_to_recordset(doc -> 'outlines') AS o(
      no int, id uuid, client int, mode text, category bigint, campaign uuid, version int, lane text,
      due timestamptz, expires timestamptz)
  ), v AS MATERIALIZED (
    SELECT * FROM jsonb_to_recordset(doc -> 'rows') AS v(
      id uuid, outline int, user_id bigint, number int, channel text, platform text, address uuid, device uuid,
      hash uuid, locale text, state text, reason text, detail text, gate text, seen jsonb)
  ), n AS (
    INSERT INTO notifications_delivery (
      id, notification_id, client_id, mode, category_id, campaign_id, user_id, recipient_no, channel, platform,
      address_id, device_id, address_hash, locale, lane, state, reason, detail, stopped_by, seen, claim_no, expires_at,
      ended_at)
    SELECT v.id, o.id, o.client, o.mode, o.category, o.campaign, v.user_id, v.number, v.channel, v.platform,
           v.address, v.device, v.hash, v.locale, o.lane, v.state, v.reason, v.detail, v.gate, v.seen, 0, o.expires,
           CASE WHEN v.state <> 'queued' THEN now() END
      FROM v JOIN o ON o.no = v.outline ORDER BY v.id
    ON CONFLICT (id) DO NOTHING
    RETURNING id, notification_id, channel, lane, client_id, state
  ), p AS (
    INSERT INTO notifications_pending (id, channel, lane, client_id, wake_at, due_at, waiting, claim_no, tries, crashes)
    SELECT n.id, n.channel, n.lane, n.client_id,
           greatest(coalesce(o.due, now()), now()) + (doc ->> 'wake_in')::float8 * interval '1 second',
           coalesce(o.due, now()), CASE WHEN o.due > now() THEN 'scheduled' ELSE '' END, 0, 0, 0
      FROM n JOIN o ON o.id = n.notification_id WHERE n.state = 'queued'
  ), t AS (
    INSERT INTO notifications_tally (hour, client_id, mode, channel, lane, category_id, template_version_id,
                                     campaign_id, account_id, from_state, to_state, n)
    SELECT date_trunc('hour', now()), o.client, o.mode, n.channel, o.lane, o.category, o.version, o.campaign, NULL,
           '', n.state, count(*)
      FROM n JOIN o ON o.id = n.notification_id
     GROUP BY o.client, o.mode, n.channel, o.lane, o.category, o.version, o.campaign, n.state
  )
  SELECT coalesce(jsonb_agg(jsonb_build_array(n.id, n.channel)), '[]') INTO queued FROM n WHERE n.state = 'queued';
  RETURN queued;
END $$;
