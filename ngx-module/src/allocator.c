/*
 * How the allocator of this library goes about in a process that is nginx's. Options have names in C
 * alone.
 */

#include <mimalloc.h>


void
ngx_http_simplestreams_set_up_allocator(void)
{
    /*
     * Every process of nginx has a little memory of ours, and a huge page for it would be more than all
     * the rest. This is about our memory: the setting is read at the library's start too, before any of
     * its code is called, and would forbid huge pages to the process then.
     */
    mi_option_disable(mi_option_allow_thp);

    /* Address space that is taken at a time, in KiB. A gigabyte would show in every process. */
    mi_option_set(mi_option_arena_reserve, 64 * 1024);
}
