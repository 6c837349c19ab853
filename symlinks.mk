# The plugins of cni-all, and rules that install them with plain make: what `cni-all install` does, for builds of images
# and packages. Printed by `cni-all generate symlinks.mk`; a test compares this file with that.
#
#     make -f symlinks.mk install DESTDIR=/tmp/image BINDIR=/opt/cni/bin
#
# CNI_ALL     the executable to install
# LINK        symbolic: relative links, bridge -> cni-all; hard: other names of the same file
# FORCE       when not empty, files of other programs are replaced, too; otherwise they are kept, and make fails

CNI_ALL_PLUGINS := \
	bandwidth \
	bridge \
	dhcp \
	dummy \
	firewall \
	flannel \
	host-device \
	host-local \
	ipvlan \
	loopback \
	macvlan \
	portmap \
	ptp \
	sbr \
	static \
	tap \
	tc-redirect-tap \
	tuning \
	vlan \
	vrf

CNI_ALL ?= target/release/cni-all
DESTDIR ?=
BINDIR ?= /opt/cni/bin
LINK ?= symbolic
FORCE ?=

# Shell functions: `ours NAME` tells our files and links, whatever their version, from those of other programs;
# `place NAME` lets the file under the temporary name take the place of NAME at once.
cni_all_functions = set -eu; dir='$(DESTDIR)$(BINDIR)'; new="$$dir/.cni-all.tmp."; \
	ours() { \
		test "$$(readlink "$$dir/$$1")" = cni-all || test "$$dir/$$1" -ef "$$dir/cni-all" || \
		{ test -f "$$dir/$$1" && grep -aq 'cni-all: this file is every CNI plugin, under whatever name it is called' "$$dir/$$1"; }; \
	}; \
	place() { mv -fT "$${new}$$1" "$$dir/$$1"; }

.PHONY: list install uninstall

list:
	@printf '%s\n' $(CNI_ALL_PLUGINS)

install:
	@$(cni_all_functions); kept=; \
	case '$(LINK)' in symbolic|hard) ;; *) echo 'LINK is symbolic or hard, not $(LINK)' >&2; exit 1;; esac; \
	mkdir -p "$$dir"; \
	for name in cni-all $(CNI_ALL_PLUGINS); do \
		if test -d "$$dir/$$name" && ! test -L "$$dir/$$name"; then \
			echo "$$dir/$$name is a directory: it is in the way, move it away" >&2; exit 1; \
		fi; \
		if test "$$name" != cni-all && test -z '$(FORCE)' && test -e "$$dir/$$name" && ! ours "$$name"; then \
			kept="$$kept $$name "; \
		fi; \
	done; \
	rm -f "$$new"*; \
	install -m 755 '$(CNI_ALL)' "$${new}cni-all"; \
	if test '$(LINK)' = symbolic; then place cni-all; fi; \
	for name in $(CNI_ALL_PLUGINS); do \
		case "$$kept" in *" $$name "*) continue;; esac; \
		if test '$(LINK)' = symbolic; then ln -s cni-all "$$new$$name"; else ln "$${new}cni-all" "$$new$$name"; fi; \
		place "$$name"; \
	done; \
	if test '$(LINK)' = hard; then place cni-all; fi; \
	for name in $$kept; do \
		echo "kept $$dir/$$name: a file of another program (FORCE=1 replaces it)" >&2; \
	done; \
	test -z "$$kept"

uninstall:
	@$(cni_all_functions); \
	for name in $(CNI_ALL_PLUGINS); do \
		if ours "$$name"; then rm -f "$$dir/$$name"; fi; \
	done; \
	rm -f "$$dir/cni-all" "$$new"*
