/* The number by which the Python code recognises a library with the same structures; setup.py passes it. */
#include <stdint.h>

uint32_t nnunet_ext_abi(void) { return NNUNET_EXT_ABI; }
