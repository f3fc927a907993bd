/* Preloaded into a process, hides AVX-512 and AMX from it: every engine then takes the kernels it has for AVX2, also those
 * whose libraries heed no setting. x86-64 Linux on CPUs that can make the CPUID instruction fault (Intel since Ivy Bridge);
 * the fault's handler runs the instruction and clears the bits.
 *
 *     cc -O2 -shared -fPIC -o hide_avx512.so hide_avx512.c && LD_PRELOAD=./hide_avx512.so PROGRAM
 *
 * On other CPUs, with HIDE_AVX512_UD2 set, it hides them from libraries that have UD2 in CPUID's place (compare.py makes such
 * copies).
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

/* asm/prctl.h; threads inherit it. */
enum { ARCH_SET_CPUID = 0x1012, FAULTS = 0, RUNS = 1 };

/* Leaf 7: AVX-512 F, DQ, IFMA, PF, ER, CD, BW, VL; VBMI, VBMI2, VNNI, BITALG, VPOPCNTDQ; 4VNNIW, 4FMAPS, VP2INTERSECT,
 * AMX-BF16, FP16, AMX-TILE, AMX-INT8. Its subleaf 1: AVX-512 BF16, AMX-FP16. */
static const uint32_t EBX_7 = 0xdc230000u, ECX_7 = 0x00005842u, EDX_7 = 0x03c0010cu, EAX_7_1 = 0x00200020u;

static void on_fault(int signal_number, siginfo_t *info, void *context) {
  (void)info;
  greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
  const uint8_t *at = (const uint8_t *)registers[REG_RIP];
  const int cpuid = at[0] == 0x0f && at[1] == 0xa2, ud2 = at[0] == 0x0f && at[1] == 0x0b;
  if (!cpuid && !ud2) {
    /* Some other fault: it comes again, and ends the process as it would have. */
    signal(signal_number, SIG_DFL);
    return;
  }
  uint32_t leaf = registers[REG_RAX], subleaf = registers[REG_RCX], a = leaf, b, c = subleaf, d;
  if (cpuid) {
    syscall(SYS_arch_prctl, ARCH_SET_CPUID, RUNS);
  }
  __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
  if (cpuid) {
    syscall(SYS_arch_prctl, ARCH_SET_CPUID, FAULTS);
  }
  if (leaf == 7 && subleaf == 0) {
    b &= ~EBX_7;
    c &= ~ECX_7;
    d &= ~EDX_7;
  }
  if (leaf == 7 && subleaf == 1) {
    a &= ~EAX_7_1;
  }
  registers[REG_RAX] = a;
  registers[REG_RBX] = b;
  registers[REG_RCX] = c;
  registers[REG_RDX] = d;
  registers[REG_RIP] += 2;
}

__attribute__((constructor)) static void hide(void) {
  struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER};
  if (getenv("HIDE_AVX512_UD2")) {
    sigaction(SIGILL, &action, NULL);
    return;
  }
  sigaction(SIGSEGV, &action, NULL);
  if (syscall(SYS_arch_prctl, ARCH_SET_CPUID, FAULTS) != 0) {
    static const char message[] = "hide_avx512: this CPU or kernel cannot make CPUID fault\n";
    (void)!write(2, message, sizeof message - 1);
    _exit(1);
  }
}
