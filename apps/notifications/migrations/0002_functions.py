from django.db import migrations

from apps.notifications.functions import function


class Migration(migrations.Migration):
    dependencies = [("notifications", "0001_initial")]

    operations = [
        function("people_1"),
        function("lay_out_1"),
        function("accept_1"),
        function("gates_1"),
        function("claim_1"),
        function("take_1"),
        function("record_1"),
        function("ring_1"),
        function("due_1"),
    ]
