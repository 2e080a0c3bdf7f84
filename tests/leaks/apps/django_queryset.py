"""Querysets are kept by customer: each keeps the rows that it has read."""
# leak: Django querysets with their result caches
# serve: gunicorn -w 1 {module}:application
# limits: --ceiling 120M
# verdict: python
# holder: django_queryset.FEEDS
# outcome: recycled

import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.db import connection, models
from django.http import HttpResponse
from django.urls import path

from lib import daily

DATABASE = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
settings.configure(
    DATABASES={"default": DATABASE}, ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="x"
)
django.setup()
FEEDS = {}


class Entry(models.Model):
    customer = models.IntegerField()
    text = models.TextField()

    class Meta:
        app_label = "feeds"


def index(request):
    number = int(request.GET["n"])
    daily.work(number)
    feed = Entry.objects.filter(customer__gte=0)
    FEEDS[number] = feed
    shown = [entry.text[:10] for entry in feed]  # <-- leaks here
    return HttpResponse(daily.answer() if shown else "")


def fill():
    with connection.schema_editor() as editor:
        editor.create_model(Entry)
    Entry.objects.bulk_create(Entry(customer=row, text=f"row {row} " * 120) for row in range(200))


fill()
urlpatterns = [path("", index)]
application = get_wsgi_application()
