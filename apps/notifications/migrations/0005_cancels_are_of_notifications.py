from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("notifications", "0004_take_2"),
    ]

    operations = [
        migrations.AddConstraint(
            model_name="hold",
            constraint=models.CheckConstraint(
                condition=models.Q(("action", "pause"), ("scope", "notification"), _connector="OR"),
                name="hold_cancels_a_notification",
            ),
        ),
    ]
