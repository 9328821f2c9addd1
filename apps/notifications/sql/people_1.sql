-- Everyone that a request names (external ids) or reaches (hashes of addresses, of device tokens), with what the
-- gates look at: {people: [[...]], suppressed: [[hash, channel, category, reason, since]]}.
CREATE FUNCTION notifications_people_1(
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
  SELECT array_agg(x.id) INTO found FROM (
    SELECT u.id FROM people_user u WHERE u.external_id = ANY (ids)
    UNION SELECT a.user_id FROM people_address a WHERE a.value_hash = ANY (addresses) AND a.user_id IS NOT NULL
    UNION SELECT v.user_id FROM people_device v WHERE v.token_hash = ANY (devices) AND v.user_id IS NOT NULL) x;
  SELECT json_agg(json_build_array(
           u.id, u.external_id, u.locale, u.is_opted_out, u.erased_at IS NOT NULL,
           CASE WHEN wants_addresses THEN (
             SELECT json_agg(json_build_array(a.channel, a.id, a.value_hash, a.status, a.is_sandbox, a.is_primary))
               FROM people_address a WHERE a.user_id = u.id) END,
           CASE WHEN wants_push THEN (
             SELECT json_agg(json_build_array(v.id, v.token_hash, v.status, v.is_sandbox, v.platform, v.locale))
               FROM people_device v WHERE v.user_id = u.id) END,
           (SELECT json_agg(json_build_array(f.category_id, f.channel, f.is_on))
              FROM people_preference f WHERE f.user_id = u.id AND f.category_id = ANY (categories))))
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
