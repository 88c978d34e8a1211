"""A small set of colour photographs for experiments: each photograph is a class, its 32 x 32 crops are the images.

    python tools/photo_crops.py OUT                  # the photographs named in tools/photo_crops.txt
    python tools/photo_crops.py OUT PHOTO PHOTO ...  # any others: the class is the file's name

writes OUT/train/CLASS/*.png from the left 60 % of each photograph and OUT/test/CLASS/*.png from the right 30 %; the
10 % between are not used, so that no pixel is in both. A photograph is first made smaller, to a short side of 800 px.
A crop is a square of 32 to 96 px of that, at a random place, made smaller to 32 px; one with hardly any detail inside
its 4 x 4 patches, such as clear sky, is drawn again. The same photographs, numbers and seed give the same pixels.

The photographs of the list come from the Debian packages mate-backgrounds, lomiri-wallpapers-16.04 and
plasma-workspace-wallpapers (`apt-get install --no-install-recommends`, or `apt-get download`, `dpkg -x` and --root).
How they may be used is in each package's /usr/share/doc/PACKAGE/copyright (GPL, CC BY, CC BY-SA or CC0). None of
them is part of this repository, and neither are the crops.
"""
import argparse, hashlib, sys, zlib
from pathlib import Path
import numpy as np
from PIL import Image, ImageOps

LIST = Path(__file__).with_suffix('.txt')
SIZE, PATCH = 32, 4   # px: side of a crop; of the patches that must have detail in them
SHORT = 800           # px: short side that a photograph is brought to
LARGEST = 3           # a crop covers 1 to this many times SIZE
LEFT, RIGHT = .6, .3  # shares of the width for training and for testing
DETAIL = 6            # grey levels of 255: least standard deviation inside a patch, mean over the patches
TRIES = 100           # places tried for each crop that is wanted


def listed(root='/', file=LIST):
    "The photographs of the list as `{class: path}`"
    rows = [o.split() for o in Path(file).read_text().splitlines() if o.strip() and not o.startswith('#')]
    missing = sorted({package for _,package,path in rows if not (Path(root)/path).exists()})
    if missing: raise ValueError(f"photographs of {', '.join(missing)} are not below {root}: install these packages")
    return {name: Path(root)/path for name,_,path in rows}


def named(paths):
    "Photographs as `{file name without its ending: path}`"
    photos = {Path(o).stem: Path(o) for o in paths}
    if len(photos) < len(paths): raise ValueError('two photographs have the same name: their classes would be one')
    return photos


def read_photo(path):
    "The photograph in RGB with a short side of SHORT px"
    try: img = ImageOps.exif_transpose(Image.open(path)).convert('RGB')
    except (OSError, ValueError) as e: raise ValueError(f'{path} cannot be read as a picture: {e}') from e
    if min(img.size) < SHORT:
        raise ValueError(f'{path} is {img.width} x {img.height} px: the least is {SHORT} x {SHORT}')
    return img.resize([round(o*SHORT/min(img.size)) for o in img.size], Image.LANCZOS, reducing_gap=3)


def detail(crop):
    "Mean over the patches of the standard deviation of grey inside a patch"
    x, n = np.asarray(crop.convert('L'), dtype=np.float32), SIZE//PATCH
    return x.reshape(n, PATCH, n, PATCH).std(axis=(1,3)).mean()


def boxes(width, height, part, rng):
    "Endless random squares (left, top, right, bottom) inside the 'train' or 'test' part of a photograph"
    lo, hi = (0, int(LEFT*width)) if part == 'train' else (width - int(RIGHT*width), width)
    while True:
        side = round(SIZE*LARGEST**rng.random())
        x, y = rng.integers(lo, hi - side, endpoint=True), rng.integers(0, height - side, endpoint=True)
        yield int(x), int(y), int(x) + side, int(y) + side


def crops(photo, part, n, rng):
    "`n` crops with enough detail, each with the box it comes from"
    found = []
    for _,box in zip(range(TRIES*n), boxes(*photo.size, part, rng)):
        if len(found) == n: break
        crop = photo.crop(box).resize((SIZE,SIZE), Image.LANCZOS) # cropped first: nothing from outside the box
        if detail(crop) >= DETAIL: found.append((crop, box))
    if len(found) < n: raise ValueError(f'{len(found)} of {n} {part} crops: the photograph has too little detail')
    return found


def build(out, photos, train=230, test=155, seed=42):
    "Write the set; the digest of its pixels"
    out, sha = Path(out), hashlib.sha256()
    if len(photos) < 2: raise ValueError(f'{len(photos)} photograph: each is a class, so two or more are needed')
    if out.exists() and any(out.iterdir()): raise ValueError(f'{out} is not empty')
    if min(train, test) < 1: raise ValueError(f'{train} training and {test} test crops: each class needs one or more')
    found = {}
    for name,path in sorted(photos.items()):
        img = read_photo(path)
        for part,n in dict(train=train, test=test).items():
            rng = np.random.default_rng([seed, zlib.crc32(f'{part} {name}'.encode())]) # whatever the other classes are
            try: found[part,name] = crops(img, part, n, rng)
            except ValueError as e: raise ValueError(f'{path}: {e}') from e
    for (part,name),many in found.items():
        (out/part/name).mkdir(parents=True)
        for i,(crop,_) in enumerate(many):
            sha.update(crop.tobytes())
            crop.save(out/part/name/f'{i:04}.png')
    return sha.hexdigest()


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('out', metavar='OUT', help='folder to write: new or empty')
    p.add_argument('photos', metavar='PHOTO', nargs='*', help='pictures; none: those of tools/photo_crops.txt')
    p.add_argument('--root', default='/', help='folder that the packages are installed or unpacked in')
    p.add_argument('--train', type=int, default=230, help='training crops of each photograph (%(default)s)')
    p.add_argument('--test', type=int, default=155, help='test crops of each photograph (%(default)s)')
    p.add_argument('--seed', type=int, default=42, help='(%(default)s)')
    o = p.parse_args(argv)
    try:
        photos = named(o.photos) if o.photos else listed(o.root)
        sha = build(o.out, photos, o.train, o.test, o.seed)
    except (ValueError, OSError) as e: return f'photo_crops: {e}'
    print(f'{o.train*len(photos)} training and {o.test*len(photos)} test images of {len(photos)} classes in {o.out}, '
          f'sha256 of their pixels {sha[:16]}')


if __name__ == '__main__': sys.exit(main())
