"""The encoders that come with the package: pretrained on CIFAR-10's training images without their labels.

    CIFAR10_ROOT=... python tools/example.py WORK

pretrains in WORK (hours; killed, it goes on; finished, it is taken as it is) and writes each encoder and its decoder in half precision
to gmml_nb/METHOD-cifar10, with a model card. tools/cifar10.py says where the images may be had from.
"""
import shutil, sys
from safetensors.torch import load_file, save_file
from gmml_nb.ablations import BASES
from gmml_nb.experiment import change
from gmml_nb.export import write_card
from gmml_nb.weights import EXAMPLES, example_encoder


def halve(file, out):
    "The same tensors in half precision"
    save_file({k: v.half().contiguous() for k,v in load_file(file).items()}, out, metadata=dict(format='pt'))


def main(work):
    for method in EXAMPLES:
        run,out = change(BASES['cifar10_few'], method=method),example_encoder(method)
        encoder,images,secs = run.pretrained(run.loaders()[0], work)
        out.mkdir(exist_ok=True)
        for f in ('model.safetensors', 'decoder.safetensors'): halve(encoder/f, out/f)
        shutil.copy(encoder/'config.json', out)
        write_card(out, 'the 50,000 training images of CIFAR-10, without their labels', 'unknown', 'apache-2.0')
        print(f'{images:,} images seen in {secs:,.0f} s: {sum(p.stat().st_size for p in out.iterdir())/1e6:.1f} MB in {out}')


if __name__ == '__main__': main(*sys.argv[1:])
