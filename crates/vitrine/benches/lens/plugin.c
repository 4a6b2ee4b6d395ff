/* A TCG plugin that gets the virtual and the physical address of each access, and does nothing with them: what
 * QEMU offers to those who want to see accesses (QEMU, "TCG Plugins"). Of its interface only what is used here is declared. */

#include <stddef.h>
#include <stdint.h>

struct tb;
struct insn;
struct hwaddr;

void qemu_plugin_register_vcpu_tb_trans_cb(uint64_t id, void (*callback)(uint64_t id, struct tb *tb));
size_t qemu_plugin_tb_n_insns(const struct tb *tb);
struct insn *qemu_plugin_tb_get_insn(const struct tb *tb, size_t n);
void qemu_plugin_register_vcpu_mem_cb(struct insn *insn,
    void (*callback)(unsigned cpu, uint32_t info, uint64_t address, void *data), int flags, int accesses, void *data);
struct hwaddr *qemu_plugin_get_hwaddr(uint32_t info, uint64_t address);
uint64_t qemu_plugin_hwaddr_phys_addr(const struct hwaddr *address);

enum { NO_REGISTERS = 0, READS_AND_WRITES = 3 };

/* The interface's version, which QEMU looks for. */
int qemu_plugin_version = 4;

/* Volatile, lest the compiler see that nobody reads them. */
static volatile uint64_t virtual_address, physical_address;

static void on_access(unsigned cpu, uint32_t info, uint64_t address, void *data)
{
    struct hwaddr *hwaddr = qemu_plugin_get_hwaddr(info, address);

    (void)cpu;
    (void)data;
    virtual_address = address;
    if (hwaddr) {
        physical_address = qemu_plugin_hwaddr_phys_addr(hwaddr);
    }
}

static void on_translation(uint64_t id, struct tb *tb)
{
    size_t count = qemu_plugin_tb_n_insns(tb);

    (void)id;
    for (size_t n = 0; n < count; n++) {
        qemu_plugin_register_vcpu_mem_cb(qemu_plugin_tb_get_insn(tb, n), on_access, NO_REGISTERS, READS_AND_WRITES, NULL);
    }
}

int qemu_plugin_install(uint64_t id, const void *info, int argc, char **argv)
{
    (void)info;
    (void)argc;
    (void)argv;
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
    return 0;
}
