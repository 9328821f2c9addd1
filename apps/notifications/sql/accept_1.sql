-- One request, from its keys to what is to be sent, committed as one: {wait_ms, key, event, notification,
-- layout}, the absent ones null; without a layout it waits to be laid out. Returns null, and writes nothing, when a key is taken already.
CREATE FUNCTION notifications_accept_1(doc jsonb) RETURNS jsonb LANGUAGE plpgsql
  SET plan_cache_mode = force_generic_plan SET jit = off
AS $$
DECLARE
  key jsonb := doc -> 'key';
  event jsonb := doc -> 'event';
  v jsonb := doc -> 'notification';
BEGIN
  PERFORM set_config('lock_timeout', doc ->> 'wait_ms', true);
  IF key <> 'null' THEN
    INSERT INTO notifications_idempotencykey (id, fingerprint, status, answer, location, created_at)
    VALUES ((key ->> 'id')::uuid, (key ->> 'fingerprint')::uuid, (key ->> 'status')::int, key ->> 'answer',
            key ->> 'location', now())
    ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
      RETURN NULL;
    END IF;
  END IF;
  IF event <> 'null' THEN
    INSERT INTO notifications_eventkey (id, fingerprint, notification_id, created_at)
    VALUES ((event ->> 'id')::uuid, (event ->> 'fingerprint')::uuid, (v ->> 'id')::uuid, now())
    ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
      DELETE FROM notifications_idempotencykey k WHERE k.id = (key ->> 'id')::uuid;
      RETURN NULL;
    END IF;
  END IF;
  INSERT INTO notifications_content (id, recipients, data, options, inline)
  VALUES ((v ->> 'id')::uuid, v -> 'asked', v -> 'data', v -> 'options', nullif(v -> 'inline', 'null'));
  IF doc -> 'layout' = 'null' THEN
    INSERT INTO notifications_expansion (id, client_id, due_at, wake_at, position)
    VALUES ((v ->> 'id')::uuid, (v ->> 'client')::int, coalesce((v ->> 'later')::timestamptz, now()),
            coalesce((v ->> 'later')::timestamptz, now()), 0);
  END IF;
  INSERT INTO notifications_notification (id, client_id, mode, event_id, reference, template_version_id, category_id,
    lane, channels, recipients, due_at, expires_at, metadata, request_id, status, created_at)
  VALUES ((v ->> 'id')::uuid, (v ->> 'client')::int, v ->> 'mode', v ->> 'event_id', v ->> 'reference',
    (v ->> 'version')::bigint, (v ->> 'category')::bigint, v ->> 'lane', v -> 'channels', (v ->> 'recipients')::int,
    (v ->> 'due')::timestamptz, (v ->> 'expires')::timestamptz, v -> 'metadata', v ->> 'request_id', v ->> 'status',
    (v ->> 'created')::timestamptz);
  RETURN CASE WHEN doc -> 'layout' = 'null' THEN '[]'::jsonb ELSE notifications_lay_out_1(doc -> 'layout') END;
END $$;
