/* Entry from the multiboot loader: own GDT, stack, cleared interrupts, then probe_main(). */
        .set MAGIC, 0x1BADB002
        .set FLAGS, 0x2                 /* ask for the memory map */

        .section .multiboot, "a"
        .align 4
        .long MAGIC, FLAGS, -(MAGIC + FLAGS)

        .text
        .globl _start
_start: cli
        cld
        movl $stack_top, %esp
        lgdt gdt_pointer                /* the loader's GDT may be gone; iret needs a valid CS */
        ljmp $0x08, $1f
1:      movw $0x10, %cx
        movw %cx, %ds
        movw %cx, %es
        movw %cx, %fs
        movw %cx, %gs
        movw %cx, %ss
        pushl %ebx                      /* multiboot information */
        pushl %eax                      /* multiboot magic */
        call probe_main
2:      cli
        hlt
        jmp 2b

/* The timer only has to end a hlt: acknowledge, return. */
        .globl irq_timer, irq_other
irq_timer:
        pushl %eax
        movb $0x20, %al
        outb %al, $0x20
        popl %eax
irq_other:
        iret

/* 32 processor exceptions: push the number, then tell the operator (fault() does not return). */
        .macro stub n
        .align 16
        pushl $\n
        jmp fault_common
        .endm
        .align 16
        .globl fault_stubs
fault_stubs:
        .set i, 0
        .rept 32
        stub i
        .set i, i + 1
        .endr
fault_common:
        pushl %esp
        call fault

        .section .rodata
        .align 8
gdt:    .quad 0
        .quad 0x00CF9A000000FFFF        /* 0x08: flat code */
        .quad 0x00CF92000000FFFF        /* 0x10: flat data */
gdt_pointer:
        .word gdt_pointer - gdt - 1
        .long gdt

        .bss
        .align 16
        .skip 16384
stack_top:

        .section .note.GNU-stack, "", @progbits
