-- What the gates look at, for claimed deliveries (ids in order): {rows: [[...]], asked: [[...]], holds: [[...]]}.
-- `rows` in the order of `apps.notifications.claims.Read`, `asked` once for each notification.
CREATE FUNCTION notifications_gates_2(ids uuid[]) RETURNS json LANGUAGE plpgsql
  SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off
  SET enable_mergejoin = off SET jit = off
AS $$
DECLARE
  lo uuid := ids[1];
  hi uuid := ids[cardinality(ids)];
  read json;
  named uuid[]; -- in order, as DISTINCT leaves them
  asked json;
BEGIN
  SELECT json_agg(json_build_array(
           d.id, d.notification_id, d.client_id, d.mode, d.category_id, d.campaign_id, d.user_id, d.recipient_no,
           d.channel, d.address_id, d.device_id, d.locale, d.lane, d.state, d.account_id,
           extract(epoch FROM d.expires_at)::float8, d.expires_at <= now(),
           cl.is_active, cl.is_verified, cat.key, cat.is_mandatory, cat.is_on_by_default, cat.on_uncertain,
           u.id IS NOT NULL, u.erased_at IS NOT NULL, coalesce(u.is_opted_out, others.is_opted_out, false),
           CASE WHEN d.user_id IS NULL THEN others.is_on ELSE f.is_on END,
           s.reason, to_char(s.created_at, 'YYYY-MM-DD'),
           a.value, a.status, a.user_id, a.is_sandbox,
           v.token, v.status, v.user_id, v.platform, v.provider, v.token_kind, v.app_id, v.apns_environment,
           v.is_sandbox)),
         array_agg(DISTINCT d.notification_id)
    INTO read, named
    FROM notifications_delivery d
    -- LIMIT 1: each is looked up by its key, whatever the planner thought of the size of the table.
    JOIN LATERAL (SELECT * FROM clients_client x WHERE x.id = d.client_id LIMIT 1) cl ON true
    JOIN LATERAL (SELECT * FROM people_category x WHERE x.id = d.category_id LIMIT 1) cat ON true
    LEFT JOIN LATERAL (SELECT * FROM people_user x WHERE x.id = d.user_id LIMIT 1) u ON true
    LEFT JOIN LATERAL ( -- OFFSET 0: found by the person, not by the category, in which millions may have chosen
      SELECT x.is_on FROM (SELECT * FROM people_preference y WHERE y.user_id = d.user_id OFFSET 0) x
       WHERE x.category_id = d.category_id AND x.channel = d.channel LIMIT 1) f ON true
    LEFT JOIN LATERAL (SELECT * FROM people_address x WHERE x.id = d.address_id LIMIT 1) a ON true
    LEFT JOIN LATERAL (SELECT * FROM people_device x WHERE x.id = d.device_id LIMIT 1) v ON true
    LEFT JOIN LATERAL (
      SELECT x.reason, x.created_at FROM people_suppression x
       WHERE x.address_hash = d.address_hash AND x.channel = d.channel
         AND (x.category_id IS NULL OR x.category_id = d.category_id)
         AND (x.expires_at IS NULL OR x.expires_at > now())
       LIMIT 1) s ON true
    LEFT JOIN LATERAL ( -- a raw address: the strictest of those it belongs to
      SELECT bool_or(o.is_opted_out) AS is_opted_out, bool_and(coalesce(g.is_on, cat.is_on_by_default)) AS is_on
        -- UNION ALL: to tell doubles apart the planner may read a whole index in the order of the people.
        FROM (SELECT b.user_id FROM people_address b WHERE b.value_hash = d.address_hash
              UNION ALL SELECT w.user_id FROM people_device w WHERE w.token_hash = d.address_hash) owner
        JOIN LATERAL (SELECT * FROM people_user x WHERE x.id = owner.user_id LIMIT 1) o ON true
        LEFT JOIN LATERAL (
          SELECT x.is_on FROM (SELECT * FROM people_preference y WHERE y.user_id = o.id OFFSET 0) x
           WHERE x.category_id = d.category_id AND x.channel = d.channel LIMIT 1) g ON true
       WHERE d.user_id IS NULL) others ON true
   WHERE d.id = ANY (ids) AND d.id BETWEEN lo AND hi;
  lo := named[1];
  hi := named[cardinality(named)];
  SELECT json_agg(json_build_array(n.id, n.template_version_id, c.recipients, c.data, c.options, c.inline))
    INTO asked
    FROM notifications_notification n
    JOIN notifications_content c ON c.id = n.id AND c.id = ANY (named) AND c.id BETWEEN lo AND hi
   WHERE n.id = ANY (named) AND n.id BETWEEN lo AND hi;
  RETURN json_build_object(
    'rows', coalesce(read, '[]'), 'asked', coalesce(asked, '[]'),
    'holds', (SELECT json_agg(json_build_array(h.scope, h.subject, h.action, h.reason))
                FROM notifications_hold h WHERE h.scope <> 'account'));
END $$;
