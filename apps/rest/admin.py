"""What every admin screen shares: lists that count nothing, searches that know ids, verbs asked for in a dialog."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar
from uuid import UUID

from django import forms
from django.contrib import messages
from django.contrib.admin import ShowFacets
from django.contrib.admin.checks import ModelAdminChecks
from django.contrib.admin.views.main import ORDER_VAR, PAGE_VAR, SEARCH_VAR
from django.core.exceptions import ValidationError
from django.core.paginator import Paginator
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from unfold.admin import ModelAdmin, TabularInline
from unfold.decorators import action, display
from unfold.enums import ActionVariant
from unfold.forms import BaseDialogForm
from unfold.views import ChangeList
from unfold.widgets import UnfoldAdminCheckboxSelectMultipleWidget, UnfoldAdminTextareaWidget

from apps.rest.problems import Problem

PER_PAGE = 50
MOST_PAGES = 40  # page 90 of a million rows takes 0.7 s (measured): nobody reads that far, one searches
MOST_FILTERED = 100_000  # rows that a filter looks at: some 50 ms
SHOWN_CHARACTERS = 4
MAY_SEE_ADDRESSES = "people.view_address_value"

F = TypeVar("F", bound=Callable[..., Any])


class UncountedPaginator(Paginator):  # type: ignore[type-arg] # has no type parameter at run time
    """Pages of a list that nobody counts: the next one is offered while this one is full, up to `MOST_PAGES`."""

    template_name = "console/pagination.html"
    count = PER_PAGE * MOST_PAGES  # what Django believes; no page shows it
    most_filtered = MOST_FILTERED


class QuietList(ChangeList):  # type: ignore[misc] # the theme has no types
    """Says no number above the list, where the theme would take `count` for one and offer to show all; and sorts by
    nothing but what the screen allows, whatever the address says."""

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        self.full_result_count = self.result_count

    def get_ordering_field(self, field_name: Any) -> Any:
        is_allowed = self.sortable_by is None or field_name in self.sortable_by
        return super().get_ordering_field(field_name) if is_allowed else None


class Screen(ModelAdmin):  # type: ignore[misc] # the theme has no types
    """A list that answers in the same number of queries, whatever it holds."""

    # The theme's own (unfold 0.91) look permissions up in the database, which at the first `migrate` has no tables.
    checks_class = ModelAdminChecks
    list_per_page = PER_PAGE
    list_fullwidth = True
    compressed_fields = False  # labels above their fields: beside them, three in a row leave no room
    show_full_result_count = False
    show_facets = ShowFacets.NEVER
    list_disable_select_all = True
    empty_value_display = "–"

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[Any]:
        return QuietList


class Inline(TabularInline):  # type: ignore[misc]
    """Rows that belong to the page's row, as a table in it."""

    extra = 0


class LongScreen(Screen):
    """The same for tables that may grow without end: not counted, not sorted but by the key, searched by ids.

    The page says so where a list ends early (console/pagination.html).
    """

    paginator = UncountedPaginator
    ordering: Sequence[str] = ("-pk",)
    sortable_by: Sequence[str] = ()
    search_fields: Sequence[str] = ("pk",)  # shows the field; `find` does the work

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        term = search_term.strip()
        if term:
            return self.find(queryset, term), False
        is_filtered = bool(request.GET.keys() - {PAGE_VAR, ORDER_VAR, SEARCH_VAR})
        return (self.newest(request, queryset) if is_filtered else queryset), False

    def newest(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """No index answers a filter; so it looks at the newest rows only, which one short walk of the key finds."""
        keys = self.model._default_manager.order_by("-pk").values_list("pk", flat=True)
        oldest = keys[MOST_FILTERED - 1 : MOST_FILTERED].first()
        return queryset if oldest is None else queryset.filter(pk__gte=oldest)

    def find(self, queryset: QuerySet[Any], term: str) -> QuerySet[Any]:
        """The rows that `term` names, by an index; none when it names nothing."""
        id = as_uuid(term)
        return queryset.filter(pk=id) if id else queryset.none()


class ReadOnly:
    """Rows that only the engine or a service writes. Mixed in before the screen."""

    actions = None

    def has_add_permission(self, request: HttpRequest, *_: Any) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class NeverDeleted:
    """Rows that others name by id without a constraint: they are switched off instead. Mixed in before the screen."""

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


def as_uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


# --- What may be seen -------------------------------------------------------------------------------------------


def masked(value: str) -> str:
    """The last four characters of an address or token: enough to recognise it with its owner on the phone."""
    return f"…{value[-SHOWN_CHARACTERS:]}" if value else ""


def shown_address(request: HttpRequest, value: str) -> str:
    """In full for those who may see addresses."""
    return value if request.user.has_perm(MAY_SEE_ADDRESSES) else masked(value)


def change_url(model: str, key: Any) -> str:
    """The page of a row: `change_url("people_user", 5)`."""
    return reverse(f"admin:{model}_change", args=[key])


def link(model: str, key: Any, text: Any) -> SafeString | str:
    """A link to the page of a row; nothing when there is no row."""
    if key is None:
        return ""
    return format_html('<a class="screen-link" href="{}">{}</a>', change_url(model, key), text)


def column(
    title: str, *, label: bool | Mapping[str, str] | None = None, ordering: str | None = None
) -> Callable[[F], F]:
    """A method as a column of a list, or as a field of a page. `label`: shown as a coloured word, by its value."""
    decorate: Callable[[F], F] = display(description=title, label=label, ordering=ordering)
    return decorate


# --- Verbs ------------------------------------------------------------------------------------------------------


class Dialog(BaseDialogForm):  # type: ignore[misc]
    """What a verb asks for."""


def verb(
    title: str,
    *,
    explains: str = "",
    form: type[Dialog] | None = None,
    permission: str = "change",
    icon: str | None = None,
    dangerous: bool = False,
) -> Callable[[F], F]:
    """A button on a row's page. It opens a dialog, so that nothing happens by following a link.

    The method gets (request, form, object_id) once the form is valid, and answers with `done` or `show_once`.
    """
    decorate: Callable[[F], F] = action(
        description=title,
        permissions=[permission],
        icon=icon,
        variant=ActionVariant.DANGER if dangerous else ActionVariant.DEFAULT,
        dialog={"title": title, "description": explains, "form_class": form, "form_submit_text": title},
    )
    return decorate


class Reason(Dialog):
    """For verbs that somebody will ask about later."""

    reason = forms.CharField(
        max_length=200, widget=UnfoldAdminTextareaWidget(attrs={"rows": 2}), help_text="Others will read it."
    )


def done(request: HttpRequest, model: str, key: Any, text: str, *, level: int = messages.SUCCESS) -> HttpResponse:
    """Say `text` on the row's page."""
    messages.add_message(request, level, text)
    url = change_url(model, key) if key is not None else reverse(f"admin:{model}_changelist")
    if request.headers.get("HX-Request"):
        return HttpResponse(headers={"HX-Redirect": url})
    return redirect(url)


def refused(request: HttpRequest, model: str, key: Any, error: Exception) -> HttpResponse:
    """Say why a service would not do it."""
    if isinstance(error, Problem):
        text = "; ".join(fault.detail for fault in error.errors) or error.detail
    else:
        text = str(error)
    return done(request, model, key, text, level=messages.ERROR)


def show_once(request: HttpRequest, title: str, values: Iterable[tuple[str, str]]) -> HttpResponse:
    """Put values in the dialog's place that are kept nowhere else. They are in this answer alone."""
    response = render(request, "console/show_once.html", {"title": title, "values": list(values)})
    response["Cache-Control"] = "no-store"
    response["HX-Retarget"], response["HX-Reselect"], response["HX-Reswap"] = "#modal-content", "#dialog", "innerHTML"
    return response


# --- Form fields ------------------------------------------------------------------------------------------------


class Lines(forms.CharField):
    """A list of texts, one a line."""

    def __init__(self, *, max_each: int, **options: Any) -> None:
        self.max_each = max_each
        super().__init__(widget=UnfoldAdminTextareaWidget(attrs={"rows": 3}), required=False, **options)

    def prepare_value(self, value: Any) -> Any:
        return "\n".join(value) if isinstance(value, list) else value

    def to_python(self, value: Any) -> Any:
        lines = [line.strip() for line in (value or "").splitlines()]
        return list(dict.fromkeys(line for line in lines if line))

    def validate(self, value: Any) -> None:
        for line in value:
            if len(line) > self.max_each:
                raise ValidationError(f"{line[:20]}… is longer than {self.max_each} characters")

    def run_validators(self, value: Any) -> None:
        """Those of a text; the lines were looked at one by one."""


class Boxes(forms.MultipleChoiceField):
    """A list of words out of a few, as checkboxes."""

    def __init__(self, choices: Iterable[Any], **options: Any) -> None:
        words = [(str(word), str(word)) for word in choices]
        super().__init__(choices=words, widget=UnfoldAdminCheckboxSelectMultipleWidget, **options)


def staff_id(request: HttpRequest) -> int:
    """Whose name the log of changes gets. Every page of the site asks for a login first."""
    assert request.user.pk is not None  # noqa: S101
    return request.user.pk


def staff_name(request: HttpRequest) -> str:
    """How services note who did it."""
    return f"admin:{request.user.get_username()}"
