from django.db import migrations

from apps.notifications.functions import function


class Migration(migrations.Migration):
    dependencies = [("notifications", "0002_functions")]

    operations = [
        function("people_2"),
        function("gates_2"),
        function("claim_2"),
        function("due_2"),
    ]
