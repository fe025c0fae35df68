/*
 * What is read and written in C: bit fields.
 *
 * nginx's bindings for Rust lay them out by a rule of their own, which is not the compiler's where
 * a bit field follows a smaller integer: from nginx 1.29 on (a port stands before the request's
 * bits) half of the request's flags are off by two bits. Every bit field is therefore touched here,
 * by the compiler's rule, which is that of the nginx that loads the module.
 */

#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_event.h>
#include <ngx_http.h>


ngx_uint_t
ngx_http_simplestreams_header_sent(ngx_http_request_t *r)
{
    return r->header_sent;
}


ngx_uint_t
ngx_http_simplestreams_header_only(ngx_http_request_t *r)
{
    return r->header_only;
}


void
ngx_http_simplestreams_allow_ranges(ngx_http_request_t *r)
{
    r->allow_ranges = 1;
}


/* Whether nginx writes the Vary line, and if so, that it shall. */

ngx_uint_t
ngx_http_simplestreams_vary(ngx_http_request_t *r)
{
#if (NGX_HTTP_GZIP)
    ngx_http_core_loc_conf_t  *clcf;

    clcf = ngx_http_get_module_loc_conf(r, ngx_http_core_module);

    if (clcf->gzip_vary == 1) {
        r->gzip_vary = 1;
        return 1;
    }
#endif

    return 0;
}


ngx_uint_t
ngx_http_simplestreams_accepts_gzip(ngx_http_request_t *r)
{
#if (NGX_HTTP_GZIP)
    return ngx_http_gzip_ok(r) == NGX_OK;
#else
    return 0;
#endif
}


ngx_uint_t
ngx_http_simplestreams_etag(ngx_http_request_t *r)
{
    ngx_http_core_loc_conf_t  *clcf;

    clcf = ngx_http_get_module_loc_conf(r, ngx_http_core_module);

    return clcf->etag == 1;
}


/* Whether an error_page answers instead of this status. */

ngx_uint_t
ngx_http_simplestreams_error_page(ngx_http_request_t *r, ngx_int_t status)
{
    ngx_uint_t                 i;
    ngx_http_err_page_t       *page;
    ngx_http_core_loc_conf_t  *clcf;

    clcf = ngx_http_get_module_loc_conf(r, ngx_http_core_module);

    if (clcf->error_pages == NULL) {
        return 0;
    }

    page = clcf->error_pages->elts;

    for (i = 0; i < clcf->error_pages->nelts; i++) {
        if (page[i].status == status) {
            return 1;
        }
    }

    return 0;
}


/*
 * A buffer of this request alone, since the range filter edits it; read-only to nginx, which copies
 * before it changes. One without data must say what it is for, or nginx takes it for a mistake.
 */

static ngx_buf_t *
ngx_http_simplestreams_buffer(ngx_http_request_t *r, u_char *data, size_t len)
{
    ngx_buf_t  *b;

    b = ngx_calloc_buf(r->pool);
    if (b == NULL) {
        return NULL;
    }

    if (len) {
        b->start = data;
        b->pos = data;
        b->last = data + len;
        b->end = b->last;
        b->memory = 1;

    } else {
        b->sync = (r == r->main) ? 0 : 1;
    }

    return b;
}


/*
 * The body. With a descriptor, the same bytes are in that file too: nginx then sends them with
 * sendfile(2) where "sendfile" is on and the connection is not encrypted by OpenSSL, and from memory
 * elsewhere.
 *
 * What comes before the file's next page goes from memory, together with the header: a piece of a
 * page at the beginning makes the last segment a small one too, and that would wait for the client's
 * delayed acknowledgement where "tcp_nopush" is on. A range can be anywhere, and nginx makes several
 * of one buffer only, so requests for ranges are answered from memory.
 */

ngx_chain_t *
ngx_http_simplestreams_body(ngx_http_request_t *r, u_char *data, size_t len,
    ngx_fd_t fd, off_t offset)
{
    size_t        head;
    ngx_buf_t    *b;
    ngx_chain_t  *out, **last, *cl;

    head = len;

    if (fd != NGX_INVALID_FILE && r->headers_in.range == NULL) {
        head = (ngx_pagesize - (size_t) offset % ngx_pagesize) % ngx_pagesize;
        head = ngx_min(head, len);
    }

    out = NULL;
    last = &out;
    b = NULL;

    if (head || len == 0) {
        b = ngx_http_simplestreams_buffer(r, data, head);
        cl = ngx_alloc_chain_link(r->pool);
        if (b == NULL || cl == NULL) {
            return NULL;
        }

        cl->buf = b;
        cl->next = NULL;
        *last = cl;
        last = &cl->next;
    }

    if (head < len) {
        b = ngx_http_simplestreams_buffer(r, data + head, len - head);
        cl = ngx_alloc_chain_link(r->pool);
        if (b == NULL || cl == NULL) {
            return NULL;
        }

        b->file = ngx_pcalloc(r->pool, sizeof(ngx_file_t));
        if (b->file == NULL) {
            return NULL;
        }

        /* The name is for nginx's error messages alone. */
        b->file->fd = fd;
        ngx_str_set(&b->file->name, "simplestreams snapshot");
        b->file->log = r->connection->log;

        b->in_file = 1;
        b->file_pos = offset + (off_t) head;
        b->file_last = offset + (off_t) len;

        cl->buf = b;
        cl->next = NULL;
        *last = cl;
    }

    b->last_buf = (r == r->main) ? 1 : 0;
    b->last_in_chain = 1;

    return out;
}


/* A location that no URI is matched with by its name. */

ngx_uint_t
ngx_http_simplestreams_unnamed(ngx_http_core_loc_conf_t *clcf)
{
#if (NGX_PCRE)
    if (clcf->regex) {
        return 1;
    }
#endif

    return clcf->named;
}


/* The inside of an "if" or "limit_except". */

ngx_uint_t
ngx_http_simplestreams_inside(ngx_http_core_loc_conf_t *clcf)
{
    return clcf->noname;
}


/*
 * How a request ended: its status as $status has it, 0 for a subrequest; and the bytes of its body
 * that were sent. Called when the request's pool goes, while the request is still there.
 */

ngx_uint_t
ngx_http_simplestreams_outcome(ngx_http_request_t *r, uint64_t *bytes)
{
    off_t  sent;

    if (r != r->main) {
        return 0;
    }

    sent = r->connection->sent - (off_t) r->header_size;
    *bytes = sent > 0 ? (uint64_t) sent : 0;

    return r->err_status ? r->err_status : r->headers_out.status;
}


/* Without data the variable has no value. */

void
ngx_http_simplestreams_set_variable(ngx_variable_value_t *v, u_char *data, size_t len)
{
    if (data == NULL) {
        v->not_found = 1;
        return;
    }

    v->len = len;
    v->data = data;
    v->valid = 1;
    v->no_cacheable = 1;
    v->not_found = 0;
}


/* A worker that leaves does not wait for this timer. */

void
ngx_http_simplestreams_cancelable(ngx_event_t *ev)
{
    ev->cancelable = 1;
}


void
ngx_http_simplestreams_add_timer(ngx_event_t *ev, ngx_msec_t delay)
{
    ev->log = ngx_cycle->log;

    ngx_add_timer(ev, delay);
}


void
ngx_http_simplestreams_del_timer(ngx_event_t *ev)
{
    if (ev->timer_set) {
        ngx_del_timer(ev);
    }
}
