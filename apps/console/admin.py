"""Screens that belong to no room or to several, and the site itself."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.contrib.auth.admin import GroupAdmin as DjangoGroupAdmin
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.contrib.auth.models import Group
from django.contrib.auth.models import User as Staff
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django_celery_beat import admin as beat
from django_celery_beat.models import ClockedSchedule, CrontabSchedule, IntervalSchedule, PeriodicTask, SolarSchedule
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm
from unfold.widgets import UnfoldAdminSelectWidget, UnfoldAdminTextInputWidget

from apps.console.person import PersonScreen
from apps.people.models import User
from apps.rest.admin import Inline, ReadOnly, Screen, column, link

admin.site.index_template = "console/dashboard.html"
admin.site.index_title = "Dashboard"
admin.site.enable_nav_sidebar = True

# Registered by their own packages with Django's plain screens, which look broken in the theme.
for _model in (Staff, Group, ClockedSchedule, CrontabSchedule, IntervalSchedule, PeriodicTask, SolarSchedule):
    admin.site.unregister(_model)

admin.site.register(User, PersonScreen)


@admin.register(Staff)
class StaffAdmin(DjangoUserAdmin, Screen):  # type: ignore[type-arg] # has no type parameter at run time
    form = UserChangeForm
    add_form = UserCreationForm
    change_password_form = AdminPasswordChangeForm
    list_display = ("username", "email", "is_active", "is_superuser", "last_login")
    actions = None


@admin.register(Group)
class StaffGroupAdmin(DjangoGroupAdmin, Screen):
    actions = None


# --- Schedules --------------------------------------------------------------------------------------------------


class TaskChoice(UnfoldAdminSelectWidget, beat.TaskSelectWidget):  # type: ignore[misc] # neither has types
    """The theme's select with the tasks that are registered."""


class PeriodicTaskForm(beat.PeriodicTaskForm):  # type: ignore[misc] # the package has no types
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.fields["task"].widget = UnfoldAdminTextInputWidget()
        self.fields["regtask"].widget = TaskChoice()


@admin.register(PeriodicTask)
class PeriodicTaskAdmin(beat.PeriodicTaskAdmin, Screen):  # type: ignore[misc]
    form = PeriodicTaskForm
    list_display = ("name", "is_on", "schedule", "task", "queue", "last_run_at")
    list_filter = ("enabled", "one_off")
    date_hierarchy = None
    change_form_template = None  # the package's own holds an inline script, which the policy forbids

    @column("state", label={"on": "success", "off": "warning"})
    def is_on(self, task: PeriodicTask) -> str:
        return "on" if task.enabled else "off"

    @column("runs")
    def schedule(self, task: PeriodicTask) -> str:
        return str(task.interval or task.crontab or task.solar or task.clocked or "never")

    def changeform_view(self, request: HttpRequest, *args: Any, **options: Any) -> HttpResponse:
        """Past the package's, which reads every crontab for that script."""
        answer: HttpResponse = super(beat.PeriodicTaskAdmin, self).changeform_view(request, *args, **options)
        return answer


class TaskInline(ReadOnly, Inline):
    """Which tasks run by a schedule."""

    model = PeriodicTask
    fields = ("page", "task", "enabled")
    readonly_fields = fields
    hide_title = True
    verbose_name_plural = "tasks that run by it"

    def get_queryset(self, request: HttpRequest) -> QuerySet[PeriodicTask]:
        rows: QuerySet[PeriodicTask] = super().get_queryset(request)
        return rows.select_related("interval", "crontab", "solar", "clocked")  # its name for people says when it runs

    @column("name")
    def page(self, task: PeriodicTask) -> str:
        return link("django_celery_beat_periodictask", task.pk, task.name)


class ScheduleAdmin(Screen):
    inlines = (TaskInline,)
    actions = None


@admin.register(CrontabSchedule)
class CrontabAdmin(ScheduleAdmin):
    list_display = ("__str__", "human_readable", "timezone")
    fields = (("minute", "hour", "day_of_week"), ("day_of_month", "month_of_year", "timezone"))


@admin.register(IntervalSchedule)
class IntervalAdmin(ScheduleAdmin):
    list_display = ("__str__", "every", "period")
    fields = (("every", "period"),)


@admin.register(ClockedSchedule)
class ClockedAdmin(ScheduleAdmin):
    list_display = ("clocked_time",)


@admin.register(SolarSchedule)
class SolarAdmin(ScheduleAdmin):
    list_display = ("event", "latitude", "longitude")
