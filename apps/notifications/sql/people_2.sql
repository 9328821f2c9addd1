-- Everyone that a request names (external ids) or reaches (hashes of addresses, of device tokens), with what the
-- gates look at: {people: [[...]], suppressed: [[hash, channel, category, reason, since]]}.
CREATE FUNCTION notifications_people_2(
  ids text[], addresses uuid[], devices uuid[], categories bigint[], wants_addresses boolean, wants_push boolean
) RETURNS json LANGUAGE plpgsql STABLE
  SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off
  SET enable_mergejoin = off SET jit = off
AS $$
DECLARE
  found bigint[];
  people json;
  suppressed json;
BEGIN
  -- UNION ALL, and so some twice: to tell doubles apart the planner may read a whole index in the order of the people.
  SELECT array_agg(x.id) INTO found FROM (
    SELECT u.id FROM people_user u WHERE u.external_id = ANY (ids)
    UNION ALL SELECT a.user_id FROM people_address a WHERE a.value_hash = ANY (addresses) AND a.user_id IS NOT NULL
    UNION ALL SELECT v.user_id FROM people_device v WHERE v.token_hash = ANY (devices) AND v.user_id IS NOT NULL) x;
  SELECT json_agg(json_build_array(
           u.id, u.external_id, u.locale, u.is_opted_out, u.erased_at IS NOT NULL,
           CASE WHEN wants_addresses THEN (
             SELECT json_agg(json_build_array(a.channel, a.id, a.value_hash, a.status, a.is_sandbox, a.is_primary))
               FROM people_address a WHERE a.user_id = u.id) END,
           CASE WHEN wants_push THEN (
             SELECT json_agg(json_build_array(v.id, v.token_hash, v.status, v.is_sandbox, v.platform, v.locale))
               FROM people_device v WHERE v.user_id = u.id) END,
           -- OFFSET 0: found by the person, not by the category, in which millions may have chosen.
           (SELECT json_agg(json_build_array(f.category_id, f.channel, f.is_on))
              FROM (SELECT * FROM people_preference x WHERE x.user_id = u.id OFFSET 0) f
             WHERE f.category_id = ANY (categories))))
    INTO people FROM people_user u WHERE u.id = ANY (found);
  SELECT json_agg(json_build_array(s.address_hash, s.channel, s.category_id, s.reason,
                                   to_char(s.created_at, 'YYYY-MM-DD')))
    INTO suppressed FROM people_suppression s
   WHERE s.address_hash = ANY (
           addresses || devices
           || ARRAY(SELECT a.value_hash FROM people_address a WHERE wants_addresses AND a.user_id = ANY (found))
           || ARRAY(SELECT v.token_hash FROM people_device v WHERE wants_push AND v.user_id = ANY (found)))
     AND (s.expires_at IS NULL OR s.expires_at > now());
  RETURN json_build_object('people', coalesce(people, '[]'), 'suppressed', coalesce(suppressed, '[]'));
END $$;
