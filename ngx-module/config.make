# Rules for nginx's Makefile. Whether anything is to be done is cargo's to know, so it is asked each time.

simplestreams_module=ngx_http_simplestreams_module.so
case $NGX_OBJS in
    /*) simplestreams_objs=$NGX_OBJS ;;
    *) simplestreams_objs=$PWD/$NGX_OBJS ;;
esac
simplestreams_target=${CARGO_TARGET_DIR:-$simplestreams_objs/simplestreams}
# nginx makes a path below the prefix of it only later.
case $NGX_MODULES_PATH in
    /*) simplestreams_path=$NGX_MODULES_PATH ;;
    *) simplestreams_path=$NGX_PREFIX/$NGX_MODULES_PATH ;;
esac

# Not one of DYNAMIC_MODULES: nginx would link those itself.
cat << END                                                    >> $NGX_MAKEFILE

modules:	$NGX_OBJS/$simplestreams_module
install:	simplestreams_install

.PHONY:	simplestreams_build simplestreams_install

simplestreams_build:
	NGINX_SOURCE_DIR='$PWD' NGINX_BUILD_DIR='$simplestreams_objs' CARGO_TARGET_DIR='$simplestreams_target' \\
		${CARGO:-cargo} build --release --locked --manifest-path '$ngx_addon_dir/Cargo.toml'

$NGX_OBJS/$simplestreams_module:	simplestreams_build
	cp '$simplestreams_target/release/lib$simplestreams_module' '$NGX_OBJS/$simplestreams_module'

# By rename, never in place: a running nginx may have it mapped.
simplestreams_install:	$NGX_OBJS/$simplestreams_module
	test -d '\$(DESTDIR)$simplestreams_path' || mkdir -p '\$(DESTDIR)$simplestreams_path'
	cp '$NGX_OBJS/$simplestreams_module' '\$(DESTDIR)$simplestreams_path/$simplestreams_module.new'
	mv '\$(DESTDIR)$simplestreams_path/$simplestreams_module.new' '\$(DESTDIR)$simplestreams_path/$simplestreams_module'
END
