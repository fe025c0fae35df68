/*
 * How the allocator of this library goes about in a process that is nginx's. Options have names in C
 * alone.
 */

#include <mimalloc.h>
#include <sys/mman.h>

/* Address space that is taken at a time, in KiB. The gigabyte that is usual would show in every process. */
#define RESERVE_KIB  (64 * 1024)


void
ngx_http_simplestreams_set_up_allocator(void)
{
    static int      is_set_up;
    void           *area;
    size_t          size;
    mi_arena_id_t   arena;

    if (is_set_up) {
        return;
    }

    is_set_up = 1;
    mi_option_set(mi_option_arena_reserve, RESERVE_KIB);

    /* It asks for huge pages otherwise. Set before the library's start, it would forbid them to nginx too. */
    mi_option_disable(mi_option_allow_thp);

    /*
     * Where the system gives huge pages unasked, it shall not here: every process of nginx has a little
     * memory of ours, and one such page would be more than all the rest. The advice is inherited. What the
     * builder takes beyond this is filled in any case.
     */
    if (mi_reserve_os_memory_ex((size_t) RESERVE_KIB * 1024, 0, 0, 0, &arena) == 0) {
        area = mi_arena_area(arena, &size);

        if (area != NULL) {
            (void) madvise(area, size, MADV_NOHUGEPAGE);
        }
    }
}
