"""Where does sqlaudit meet the frameworks of your application? Most modules say who acts: they set the audit context.

========================  ==================================================================
module                    what it gives
========================  ==================================================================
``asgi``                  ``AuditContextMiddleware``, for every ASGI application
``fastapi``               ``audit_context``, which makes a dependency
``litestar``              ``AuditContextPlugin``
``wsgi``                  ``AuditContextMiddleware``, for every WSGI application
``flask``                 ``Audit``, an extension, which knows Flask-Login
``celery``                ``install``: the context travels with the messages of tasks
``pydantic``              models of what sqlaudit returns, described for readers of an OpenAPI
``sqlmodel``              ``Temporal`` and ``time_travel``, typed for ``exec``
========================  ==================================================================

Each imports its framework, and sqlaudit imports none of them. ``request`` has what they share: what is known of a
request, and what a ``get_context`` of the application may return. It returns a dict of the arguments of
:class:`~sqlaudit.AuditContextManager`, or ``None``:

.. code-block:: python

    def get_context(scope):
        user = scope["user"]
        return {"user_id": user.id, "actor_type": "user"} if user.is_authenticated else {"actor_type": "anonymous"}

No module takes the user from a header: a client can send any. What they store in ``extra`` is ``request_id``,
``method``, ``route`` and, from the header ``traceparent``, ``trace_id`` and ``span_id``; or ``task`` and ``task_id``.
"""
