"""The pages: `/` leaks LEAK_KB on every request."""

from django.http import HttpResponse
from django.urls import path

import leak


def hello(_request):
    leak.keep()
    return HttpResponse(leak.answer())


def pid(_request):
    return HttpResponse(leak.answer())


urlpatterns = [path("", hello), path("pid", pid)]
