from django.db import migrations

from apps.notifications.functions import function


class Migration(migrations.Migration):
    dependencies = [("notifications", "0003_found_by_their_own_keys")]

    operations = [function("take_2")]
