from django.urls import path

from apps.templates import api

urlpatterns = [
    path("v1/templates", api.TemplateList.as_view()),
    path("v1/templates/<str:key>", api.TemplateDetail.as_view()),
    path("v1/templates/<str:key>/versions", api.VersionList.as_view()),
    path("v1/templates/<str:key>/versions/<int:number>", api.VersionDetail.as_view()),
    path("v1/templates/<str:key>/publish", api.Publish.as_view()),
    path("v1/templates/<str:key>/rollback", api.Rollback.as_view()),
    path("v1/templates/<str:key>/preview", api.Preview.as_view()),
]
