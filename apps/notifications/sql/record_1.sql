-- Writes results: {results: [...], tallies: [...]}. Returns the deliveries whose result counted.
-- A result counts only while its claim_no is still the row's. Pending is deleted (or rescheduled) first, and only
-- what that touched moves the delivery and is tallied; the attempt is written in any case.
CREATE FUNCTION notifications_record_1(doc jsonb) RETURNS uuid[] LANGUAGE plpgsql
  SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off
  SET enable_mergejoin = off SET jit = off
AS $$
DECLARE
  lo uuid := (doc ->> 'lo')::uuid;
  hi uuid := (doc ->> 'hi')::uuid;
  ids uuid[] := ARRAY(SELECT (r ->> 'id')::uuid FROM jsonb_array_elements(doc -> 'results') r);
  counted uuid[];
BEGIN
  WITH v AS MATERIALIZED (
    SELECT v.*, to_timestamp(v.expires_s) AS expires FROM jsonb_to_recordset(doc -> 'results') AS v(
      id uuid, claim_no int, state text, reason text, detail text, stopped_by text, seen jsonb, account int,
      retry_in float8, waiting text, lane text, counted int, expires_s float8, attempt uuid, started float8,
      ended float8, outcome text, scope text, ref text, code text, http int, said text, tally int)
  ), ended AS (
    DELETE FROM notifications_pending p USING v
     WHERE p.id = ANY (ids) AND p.id = v.id AND p.claim_no = v.claim_no AND v.retry_in IS NULL
    RETURNING p.id
  ), again AS (
    UPDATE notifications_pending p
       SET due_at = least(now() + v.retry_in * interval '1 second', v.expires), -- the claim then ends what is over
           wake_at = least(now() + v.retry_in * interval '1 second', v.expires),
           lease_until = NULL, waiting = v.waiting, lane = v.lane, tries = p.tries + v.counted, crashes = 0
      FROM v WHERE p.id = ANY (ids) AND p.id = v.id AND p.claim_no = v.claim_no AND v.retry_in IS NOT NULL
       AND (p.lease_until IS NOT NULL OR p.crashes > 0) -- else it is written already: the repeat of a lost COMMIT
    RETURNING p.id
  ), mine AS MATERIALIZED (
    SELECT id FROM ended UNION ALL SELECT id FROM again
  ), w AS MATERIALIZED (
    SELECT v.*, m.id IS NOT NULL AS is_mine FROM v LEFT JOIN mine m ON m.id = v.id
  ), tried AS (
    INSERT INTO notifications_attempt (id, delivery_id, claim_no, account_id, started_at, ended_at, outcome, scope,
                                       provider_ref, provider_code, http_status, detail, is_late)
    SELECT w.attempt, w.id, w.claim_no, w.account, to_timestamp(w.started), to_timestamp(w.ended), w.outcome, w.scope,
           w.ref, w.code, w.http, w.said, NOT w.is_mine
      FROM w WHERE w.attempt IS NOT NULL
    ON CONFLICT (id) DO UPDATE
       SET account_id = excluded.account_id, started_at = excluded.started_at, ended_at = excluded.ended_at,
           outcome = excluded.outcome, scope = excluded.scope, provider_ref = excluded.provider_ref,
           provider_code = excluded.provider_code, http_status = excluded.http_status, detail = excluded.detail,
           is_late = excluded.is_late
     WHERE notifications_attempt.provider_code = 'worker_lost'
  ), moved AS (
    UPDATE notifications_delivery d
       SET state = w.state, reason = w.reason, detail = w.detail, stopped_by = w.stopped_by, seen = w.seen,
           account_id = coalesce(w.account, d.account_id), claim_no = w.claim_no,
           sent_at = CASE WHEN w.state = 'sent' THEN to_timestamp(w.ended) ELSE d.sent_at END,
           ended_at = CASE WHEN w.retry_in IS NULL THEN now() ELSE NULL END
      FROM w WHERE d.id = ANY (ids) AND d.id = w.id AND d.id BETWEEN lo AND hi AND w.is_mine
  ), tallied AS (
    INSERT INTO notifications_tally (hour, client_id, mode, channel, lane, category_id, template_version_id,
                                     campaign_id, account_id, from_state, to_state, n)
    SELECT date_trunc('hour', now()), g.client, g.mode, g.channel, g.lane, g.category, g.version, g.campaign,
           g.account, g.from_state, g.to_state, m.n
      FROM (SELECT w.tally, count(*) AS n FROM w WHERE w.tally > 0 AND w.is_mine GROUP BY 1) m
      JOIN jsonb_to_recordset(doc -> 'tallies') AS g(
        no int, client int, mode text, channel text, lane text, category int, version int, campaign uuid,
        account int, from_state text, to_state text)
        ON g.no = m.tally
  )
  SELECT array_agg(mine.id) INTO counted FROM mine;
  RETURN counted;
END $$;
