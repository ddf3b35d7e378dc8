/* The number by which the Python code recognises a library whose structures are its own; setup.py passes it. */
#include <stdint.h>

uint32_t nnunet_ext_abi(void) { return NNUNET_EXT_ABI; }
