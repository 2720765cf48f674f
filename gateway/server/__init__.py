"""The HTTP side: the only package that knows aiohttp's server.

An *exchange* is one request and its answer. It passes the middleware (request id, problem documents, CORS, access log), is
*admitted* (address limit, identity, the principal's limits) and handled. A poll that finds nothing is *parked*; its
*waiter* is woken by the hub.
"""
