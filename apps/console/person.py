"""A person's page: where they can be reached, what they allow, and what they got or did not get, and why."""

from __future__ import annotations

from typing import Any

from django import forms
from django.http import HttpRequest, HttpResponse
from unfold.widgets import UnfoldAdminSelectWidget, UnfoldAdminSingleTimeWidget, UnfoldBooleanSwitchWidget

from apps.notifications.admin.lists import STATE_COLOURS
from apps.notifications.models import Delivery
from apps.people import services
from apps.people.admin import STATES, UserScreen
from apps.people.models import Category, Preference, Suppression, User
from apps.people.selectors import effective_preferences, places_of
from apps.rest.admin import Dialog, done, masked, refused, shown_address, staff_name, verb
from apps.rest.problems import Problem

TIMELINE = 25
UNCHANGED, ON, OFF = "", "on", "off"
CHOICES = [(UNCHANGED, "the category's default"), (ON, "on"), (OFF, "off")]
SAID_BY = {
    "mandatory": "always on",
    "all": "everything is off",
    "user": "their choice",
    "default": "the default",
}


class PreferencesForm(Dialog):
    """One choice for each category and channel that a person may choose on."""

    everything = forms.BooleanField(
        required=False,
        label="Messages",
        widget=UnfoldBooleanSwitchWidget,
        help_text="Off: nothing but mandatory categories.",
    )
    quiet_from = forms.TimeField(required=False, label="Quiet from", widget=UnfoldAdminSingleTimeWidget)
    quiet_to = forms.TimeField(required=False, label="Quiet to", widget=UnfoldAdminSingleTimeWidget)

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        user = User.objects.filter(pk=self.object_id).first()
        if user is not None:
            self.fields["everything"].initial = not user.is_opted_out
            self.fields["quiet_from"].initial, self.fields["quiet_to"].initial = user.quiet_from, user.quiet_to
        chosen = {(p.category_id, p.channel): p.is_on for p in Preference.objects.filter(user=self.object_id)}
        self.places: dict[str, tuple[str, str]] = {}
        for category in Category.objects.filter(is_mandatory=False):
            for channel in category.channels:
                name = f"choice_{category.pk}_{channel}"
                is_on = chosen.get((category.pk, channel))
                self.places[name] = category.key, channel
                self.fields[name] = forms.ChoiceField(
                    choices=CHOICES,
                    required=False,
                    label=f"{category.name} by {channel}",
                    widget=UnfoldAdminSelectWidget,
                    initial=UNCHANGED if is_on is None else ON if is_on else OFF,
                )

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or {}
        begin, end = cleaned.get("quiet_from"), cleaned.get("quiet_to")
        if (begin is None) != (end is None) or (begin is not None and begin == end):
            self.add_error("quiet_to", "Give both times, which differ; or none")
        return cleaned

    @property
    def choices(self) -> dict[str, dict[str, bool | None]]:
        """As `set_preferences` takes them."""
        found: dict[str, dict[str, bool | None]] = {}
        for name, (key, channel) in self.places.items():
            found.setdefault(key, {})[channel] = {UNCHANGED: None, ON: True, OFF: False}[self.cleaned_data[name]]
        return found


class PersonScreen(UserScreen):
    """The list of the people's room, with a page that joins several rooms."""

    change_form_outer_before_template = "console/person.html"
    fields = (
        ("external_id", "locale", "time_zone", "country"),
        "attributes",
        ("created_at", "updated_at", "erased_at"),
    )
    actions_detail = ("change_preferences",)

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        user = self.get_object(request, object_id)
        shown = joined(request, user) if user is not None else {}
        answer: HttpResponse = super().change_view(request, object_id, form_url, {**shown, **(extra_context or {})})
        return answer

    @verb(
        "Change preferences",
        explains="What the person told you. It holds from the next message on, also for what is on its way.",
        form=PreferencesForm,
        permission="people.change_preference",
        icon="tune",
    )
    def change_preferences(self, request: HttpRequest, form: PreferencesForm, object_id: str) -> HttpResponse:
        user = self.get_object(request, object_id)
        if user is None:
            return done(request, "people_user", None, "There is no such person.")
        begin, end = form.cleaned_data["quiet_from"], form.cleaned_data["quiet_to"]
        try:
            services.set_preferences(
                user.external_id,
                everything=form.cleaned_data["everything"],
                choices=form.choices,
                quiet_hours=(begin, end) if begin is not None else None,
                source=staff_name(request),
            )
        except Problem as problem:
            return refused(request, "people_user", object_id, problem)
        self.log_change(request, user, "Changed preferences.")
        return done(request, "people_user", object_id, "The preferences are changed.")


def joined(request: HttpRequest, user: User) -> dict[str, Any]:
    """Everything about a person that the page shows. A fixed number of statements."""
    addresses, devices = places_of([user])
    hashes = [address.value_hash for address in addresses[user.pk]]
    timeline = Delivery.objects.filter(user=user).select_related("category", "account", "client").order_by("-pk")
    return {
        "person": user,
        "addresses": [
            {"row": row, "shown": shown_address(request, row.value), "colour": STATES[row.status]}
            for row in addresses[user.pk]
        ],
        "devices": [{"row": row, "shown": masked(row.token), "colour": STATES[row.status]} for row in devices[user.pk]],
        "suppressions": Suppression.objects.filter(address_hash__in=hashes).select_related("category"),
        "preferences": [
            {
                "category": key,
                "channels": [
                    {"channel": channel, "is_on": is_on, "source": SAID_BY[source]}
                    for channel, (is_on, source) in by_channel.items()
                ],
            }
            for key, by_channel in effective_preferences(user).items()
        ],
        "timeline": [{"row": row, "colour": STATE_COLOURS.get(row.state)} for row in timeline[:TIMELINE]],
        "timeline_shows": TIMELINE,
    }
