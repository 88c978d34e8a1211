"What people hold in their hands: which image has which label, what a label is, what a split is called; right, or refused in a sentence"
import io, os, re, unicodedata
import matplotlib; matplotlib.use('Agg')
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch, torchvision
from PIL import Image
from fastcore.foundation import L
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, random_split
from gmml_nb.data import finetune_dls, pretrain_dls
from gmml_nb.datasets import get_dataset
from gmml_nb.sources import as_labelled, as_unlabelled, class_names, split_of

KW = dict(size=8, bs=2, device='cpu')
COLOURS = dict(a=(255, 0, 0), b=(0, 0, 255))

def paint(f, c, size=(8, 8)):
    f.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', size, COLOURS[c]).save(f)

def tree(root, *parts, n=2, classes='ab'):
    "Folders of class folders: red pictures are a, blue ones b"
    for p in parts or ('',):
        for c in classes:
            for i in range(n): paint(root/p/c/f'{c}{i}.png', c)
    return root

@pytest.fixture(scope='module')
def files(tmp_path_factory):
    d = tree(tmp_path_factory.mktemp('own'), n=4)
    return sorted(map(str, d.rglob('*.png')))

def label(f): return Path(f).parent.name
def colour(o):
    img = o() if callable(o) else Image.open(o) if isinstance(o, (str, Path)) else o
    if not isinstance(img, Image.Image): return 'a' if np.asarray(img).reshape(3, -1)[0].mean() > np.asarray(img).reshape(3, -1)[2].mean() else 'b'
    return 'a' if img.convert('RGB').getpixel((0, 0))[0] > 99 else 'b'
def right(ds): return [colour(o) == ds.vocab[y] for o, y in zip(ds.items, ds.labels)]

class Rows(Dataset):
    "A dataset that counts how often it decodes"
    def __init__(self, files, row=lambda img, y: (img, y), y=label): self.files, self.row, self.y, self.reads = files, row, y, 0
    def __len__(self): return len(self.files)
    def __getitem__(self, i):
        if i >= len(self.files): raise IndexError
        self.reads += 1
        return self.row(Image.open(self.files[i]), self.y(self.files[i]))

class Image_: pass
Image_.__name__ = 'Image'
class ClassLabel: names = ['a', 'b']
class Hub(Rows):
    "As a dataset of Hugging Face's"
    column_names, features = ['id', 'picture', 'kind'], dict(picture=Image_(), kind=ClassLabel())
    def __getitem__(self, i):
        if isinstance(i, str): return {'id': list(range(len(self))), 'kind': [' ab'.index(label(f)) - 1 for f in self.files]}[i]
        return dict(id=i, picture=Rows.__getitem__(self, i)[0], kind=0)

def raw(f): return Path(f).read_bytes()
def array(f): return np.asarray(Image.open(f))

SOURCES = dict(
    series=lambda f: (pd.Series(f).sample(frac=1, random_state=0), pd.Series(f).map(label).sample(frac=1, random_state=0)),
    filtered=lambda f: (pd.Series(f)[1::2], pd.Series(f).map(label)[1::2]),
    index=lambda f: (pd.Index(f), pd.Index(map(label, f))),
    categories=lambda f: (f, pd.Series(map(label, f), index=range(9, 1, -1)).astype('category')),
    str_array=lambda f: (np.array(f), np.array([*map(label, f)])),
    objects=lambda f: (np.array(f, object), [*map(label, f)]),
    pictures=lambda f: ([Image.open(o) for o in f], [*map(label, f)]),
    arrays=lambda f: ([array(o) for o in f], (label(o) for o in f)),
    one_array=lambda f: (np.stack([array(o) for o in f]), L(map(label, f))),
    column_vector=lambda f: (f, np.array([[int(label(o) == 'b')] for o in f])),
    tensors=lambda f: ([torch.from_numpy(array(o).copy()).permute(2, 0, 1)/255 for o in f], torch.tensor([int(label(o) == 'b') for o in f])),
    generator=lambda f: (Path(f[0]).parents[1].rglob('*.png'), [label(o) for o in Path(f[0]).parents[1].rglob('*.png')]),
    fastai=lambda f: (L(f), L(f).map(label)),
    rows=lambda f: [dict(image=Image.open(o), label=label(o)) for o in f],
    paths_in_rows=lambda f: [dict(file_name=o, category=label(o)) for o in f],
    pairs=lambda f: [(o, label(o)) for o in f],
    columns=lambda f: dict(image=f, label=[*map(label, f)]),
    file_to_label=lambda f: {o: label(o) for o in f},
    zipped=lambda f: zip(f, map(label, f)),
    frame=lambda f: pd.DataFrame(dict(label=map(label, f), path=f)).sample(frac=1, random_state=1),
    other_names=lambda f: pd.DataFrame(dict(scan=f, diagnosis=[*map(label, f)])),
    bytes_in_frame=lambda f: pd.DataFrame(dict(image=[dict(bytes=raw(o), path=None) for o in f], label=[*map(label, f)])),
    floats=lambda f: (f, [float(label(o) == 'b') for o in f]),
    bools=lambda f: (f, [label(o) == 'b' for o in f]),
    byte_strings=lambda f: (f, np.array([label(o).encode() for o in f])),
    torch_rows=lambda f: Rows(f),
    torch_dicts=lambda f: Rows(f, lambda img, y: dict(image=img, label=y)),
    torch_tensors=lambda f: Rows(f, lambda img, y: (torch.from_numpy(np.array(img)).permute(2, 0, 1)/255, torch.tensor(int(y == 'b')))),
    subset=lambda f: Subset(Subset(Rows(f), range(7, -1, -1)), [0, 2, 4, 7]),
    split=lambda f: random_split(torchvision.datasets.ImageFolder(Path(f[0]).parents[1]), [6, 2], generator=torch.Generator().manual_seed(0))[0],
    both=lambda f: ConcatDataset([Rows(f[:4]), Rows(f[4:])]),
    image_folder=lambda f: torchvision.datasets.ImageFolder(Path(f[0]).parents[1], transform=torchvision.transforms.ToTensor()),
    hub=lambda f: Hub(f),
    part_of_hub=lambda f: Subset(Hub(f), [6, 1, 0, 7]),
    folders=lambda f: [Path(f[0]).parent, str(Path(f[-1]).parent)],
)

@pytest.mark.parametrize('kind', SOURCES)
def test_every_image_has_its_own_label(files, kind):
    ds = as_labelled(SOURCES[kind](files))
    names = {0: 'a', 1: 'b', 'False': 'a', 'True': 'b'}
    assert len(ds) >= 4 and ds.vocab in (['a', 'b'], [0, 1], ['False', 'True'])
    ds.vocab = [names.get(o, o) for o in ds.vocab]
    assert all(right(ds)) and sorted({*ds.labels}) == [0, 1]

@pytest.mark.parametrize('kind', SOURCES)
def test_pretraining_takes_the_same_sources(files, kind):
    dls = pretrain_dls(SOURCES[kind](files), valid_pct=0, **KW)
    x = torch.cat([b[0] for b in dls.train.new(shuffle=False, drop_last=False)]).float().mean((-2, -1))
    assert ['a' if o[0] > o[2] else 'b' for o in x] == [colour(o) for o in dls.train.items]

def test_loaders_of_rows_and_pictures(files):
    for kind in ('pictures', 'torch_rows', 'hub', 'bytes_in_frame', 'tensors'):
        dls = finetune_dls(SOURCES[kind](files), recipe='light', valid_pct=.25, num_workers=0, **KW)
        x, y = dls.valid.one_batch()
        assert ((x[:, 0].mean((1, 2)) < x[:, 2].mean((1, 2))).long() == y).all() and len(dls.train.dataset) == 6

def test_nothing_is_decoded_twice(files):
    "Rows without labels elsewhere are read once for both; with a column of labels, or without need of them, once for the picture"
    for ds in (Rows(files), Hub(files), Rows(files, lambda img, y: dict(img=img, target=y))):
        finetune_dls(ds, recipe=None, **KW)
        assert ds.reads == len(files)
    for ds in (Rows(files), Hub(files)):
        list(pretrain_dls(ds, **KW).train)
        assert ds.reads == len(files)

def test_array_datasets_of_torchvision(tmp_path):
    class MNIST(torchvision.datasets.MNIST):
        def __init__(self): self.data, self.targets, self.transform = torch.arange(4)[:, None, None].expand(4, 8, 8).byte(), torch.tensor([7, 0, 7, 0]), None
    ds = as_labelled(MNIST())
    assert ds.vocab == ['0 - zero', '7 - seven'] and ds.labels.tolist() == [1, 0, 1, 0] and ds.items.shape == (4, 8, 8)
    assert len(as_unlabelled(Subset(MNIST(), [3, 1]))[0]) == 2
    odd = MNIST(); odd.targets = torch.tensor([-1, 0, 7, 0])
    with pytest.raises(ValueError, match='1 labels are none of the 10 classes, such as -1'): as_labelled(odd)

@pytest.mark.parametrize('source,words', [
    (lambda f: DataLoader(Rows(f)), 'give its dataset'), (lambda f: Image.open(f[0]), r'give a list, \[img\]'), (lambda f: 3, 'this is a int'),
    (lambda f: [], 'no images'), (lambda f: [1, 2], 'a list of int'), (lambda f: [f[0], None], '1 of 2 rows have no image'),
    (lambda f: np.zeros((9, 9, 3), np.uint8), 'one picture'), (lambda f: np.zeros((4, 8, 8, 16), np.uint8), 'channels first'),
    (lambda f: np.zeros((4, 8, 8), np.int64), 'scale them first'), (lambda f: np.full((4, 8, 8), 255.), 'scale them first'),
    (lambda f: np.full((4, 8, 8), np.nan), 'float images lie in'), (lambda f: np.zeros((4, 8, 8), bool), 'bool'), (lambda f: np.zeros((4, 64)), 'images are'),
    (lambda f: ((np.zeros((4, 8, 8)), [0, 1]*2), (np.zeros((4, 8, 8)), [0, 1]*2)), r'dict\(train='),
    (lambda f: pd.DataFrame(dict(x=[1, 2], y=[3, 4])), "none of its columns"), (lambda f: pd.DataFrame(dict(image=[], label=[])), 'no rows'),
    (lambda f: ['https://x.org/a.jpg'], 'download the images first'), (lambda f: f[0], 'is one image'), (lambda f: [f[0], str(Path(f[0]).parent)], 'is no folder'),
    (lambda f: pd.DataFrame(dict(path=['gone/a.png', 'gone/b.png'], label=['a', 'b'])), 'path= says'),
    (lambda f: pd.DataFrame(dict(id=['x1', 'x2'], label=['a', 'b'])).rename(columns=dict(id='image_id')), "no suffix"),
    (lambda f: '', 'is empty'), (lambda f: b'x', 'one picture'), (lambda f: [np.zeros((8 + i, 8, 4), np.uint8) for i in range(4)], 'array of pictures of one size|no labels'),
    (lambda f: (np.zeros((4, 8, 8)), [0, 1]*2, np.zeros((4, 8, 8)), [0, 1]*2), r'dict\(train='),
    (lambda f: 'photos-that-are-nowhere', 'no folder here and no dataset'), (lambda f: './nowhere', 'no such folder here: nowhere')])
@pytest.mark.parametrize('make', [pretrain_dls, finetune_dls])
def test_what_is_no_source(files, make, source, words):
    with pytest.raises(ValueError, match=words):
        s = source(files)
        if make is finetune_dls and isinstance(s, np.ndarray): s = s, ['a', 'b']*(len(s)//2) if len(s) % 2 == 0 else ['a']*len(s)
        make(s, **KW)

def test_images_without_labels(files):
    for o in (files, np.zeros((4, 8, 8), np.uint8), Rows(files, lambda img, y: img)):
        with pytest.raises(ValueError, match='have no labels'): finetune_dls(o, **KW)
    with pytest.raises(ValueError, match=r"\['breed', 'age'\] is called 'label'"):
        finetune_dls(pd.DataFrame(dict(image=files, breed=[*map(label, files)], age=range(8))), **KW)
    assert len(as_unlabelled(pd.DataFrame(dict(image=files, breed=[*map(label, files)], age=range(8))))[0]) == 8


# What a label is ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('names,words', [
    ([.5, 1., 2., .25], 'numbers from 0.25 to 2.*pandas.cut'), ([1., np.nan, 2., 1.], '1 of 4 images have no label'), (['a', None, 'b', ''], '2 of 4 images have no label'),
    (['a', pd.NA, 'b', 'a'], 'no label'), (['a b', 'a', 'b', 'b'], "several labels.*'a_b'"), (['a,b', 'b,a', 'c', 'c'], 'several labels'),
    ([['a'], ['a', 'b'], ['b'], ['a']], 'several labels'), ([{'a'}, {'b'}, {'a'}, {'b'}], 'several labels'), (["['a', 'b']", "['a']", "['b']", "['a']"], 'several labels'),
    (np.array([[1, 0], [0, 1], [1, 0], [0, 1]]), r'one-hot matrix.*argmax'), (np.array([[1, 1], [0, 1], [1, 0], [0, 0]]), 'several labels'),
    (torch.tensor([[.2, .8], [.5, .5]]*2), 'several labels'), ([3, '3', 3, '3'], r"3 \(int\) and '3' \(str\)"), (['Cat', 'cat', 'dog', 'dog'], "'Cat' and 'cat' differ in case"),
    (['black cat', 'black_cat', 'dog', 'dog'], 'differ in case or spaces'), ([pd.Timestamp('2020-01-01')]*4, 'Timestamp'), ([True, 2, True, 2], 'bool'), (3, 'give one kind'), (['0.1', '0.25', '1.5', '.75'], 'labels are numbers'), (['train', 'test']*2, 'are splits')])
def test_what_is_no_label(names, words):
    with pytest.raises(ValueError, match='(?s)' + words): as_labelled((np.zeros((4, 8, 8), np.uint8), names))

def test_mixtures_of_few_words():
    "As of satellite pictures: seventeen words, many mixtures"
    w = ['clear', 'primary', 'road', 'water']
    names = [' '.join(o for o, b in zip(w, f'{i:04b}') if b == '1') for i in range(1, 16)]
    with pytest.raises(ValueError, match='several labels'): class_names([o for o in names if ' ' in o])

@pytest.mark.parametrize('names', [['golden retriever', 'labrador retriever', 'pug'], ['black cat', 'white cat', 'black dog', 'white dog'], ['A', 'a', 'B', 'b'],
                                   ['tench, Tinca tinca', 'great white shark, white shark'], ['Audi S4 Sedan 2012', 'Audi A5 Coupe 2012', 'BMW X5 SUV 2007'], ['0', '1', '10'],
                                   ['none', 'scratch'], ['NA', 'EU'], ['healthy', 'healthy leaf'], [' cat', 'dog ']])
def test_what_is_a_label(names): assert class_names(names) == [o.strip() for o in names]

def test_names_of_images_are_no_classes():
    x = np.zeros((100, 8, 8), np.uint8)
    with pytest.raises(ValueError, match='100 classes for 100 images.*names of images'): as_labelled((x, [f'img{i}' for i in range(100)]))
    with pytest.raises(ValueError, match='1 class among the training images'): as_labelled((x, ['a']*100))

def test_one_hot_columns(files):
    with pytest.raises(ValueError, match=r'idxmax'): as_labelled(pd.DataFrame(dict(path=files, cat=[1, 0]*4, dog=[0, 1]*4)))
    with pytest.raises(ValueError, match='several labels'): as_labelled(pd.DataFrame(dict(path=files, cat=[1, 0]*4, dog=[1, 1]*4)))


# What a split is called ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize('parts,sizes', [
    (('Training', 'Testing'), (4, 0, 4)), (('train', 'validation'), (4, 4, 0)), (('TRAIN', 'Dev', 'tst'), (4, 4, 4)), (('seg_train/seg_train', 'seg_test/seg_test'), (4, 0, 4)),
    (('archive/train', 'archive/eval'), (4, 4, 0)), (('data/set/trn', 'data/set/val', 'data/set/te'), (4, 4, 4)), (('train_images', 'test_images'), (4, 0, 4)),
    (('train2017', 'val2017'), (4, 4, 0)), (('trainset', 'testset'), (4, 0, 4)), (('train_1', 'train_2', 'valid'), (8, 4, 0)), (('train', 'test', 'unlabeled'), (4, 0, 4)),
    (('train',), (4, 0, 0)), (('flowers_train', 'flowers_test'), (4, 0, 4)), (('training_set', 'test_set'), (4, 0, 4)), (('train_512x512', 'val_512x512'), (4, 4, 0)),
    (('stage1_train', 'stage1_test'), (4, 0, 4)), (('images/Train', 'images/Valid'), (4, 4, 0)), (('train_resized', 'test_resized'), (4, 0, 4))])
def test_folders_that_are_splits(tmp_path, capsys, parts, sizes):
    ds = as_labelled(tree(tmp_path, *parts))
    assert ds.vocab == ['a', 'b'] and tuple(len(ds.splits.get(k, ())) for k in ('train', 'valid', 'test')) == sizes
    assert all(colour(ds.items[i]) == ds.vocab[ds.labels[i]] for o in ds.splits.values() for i in o)
    said = capsys.readouterr().out
    assert said.count('for training') == len([o for o in parts if 'tr' in o.split('/')[-1].lower()]) and ('left out' in said) == ('unlabeled' in parts)
    items, folder = as_unlabelled(tmp_path)
    assert len(items) == sizes[0] and all('tr' in Path(o).parents[1].name.lower() for o in items)

def test_classes_that_are_divided(tmp_path):
    for c in 'ab':
        for p in ('train', 'test'): paint(tmp_path/c/p/'0.png', c)
    ds = as_labelled(tmp_path)
    assert ds.vocab == ['a', 'b'] and all(right(ds)) and [len(o) for o in ds.splits.values()] == [2, 2] and len(as_unlabelled(tmp_path)[0]) == 2

@pytest.mark.parametrize('parts,words', [
    (('train', 'test', 'old'), "'old' is no split that I know"), (('trainA', 'testA', 'trainB', 'testB'), 'are no splits'), (('val', 'test'), 'no training images'), (('test', 'dog'), "'dog' is no split"),
    (('fold1', 'fold2'), 'which is held out'), (('train', 'train_test'), 'is no split that I know')])
@pytest.mark.parametrize('read', [as_labelled, as_unlabelled])
def test_folders_that_look_like_splits(tmp_path, read, parts, words):
    with pytest.raises(ValueError, match=words): read(tree(tmp_path, *parts))

def test_torchvision_of_a_divided_folder(tmp_path):
    ds = torchvision.datasets.ImageFolder(tree(tmp_path, 'Training', 'Testing'))
    assert as_labelled(ds).vocab == ['a', 'b'] and len(as_unlabelled(ds)[0]) == 4
    with pytest.raises(ValueError, match='which is divided'): as_unlabelled(Subset(ds, [0, 1]))
    with pytest.raises(ValueError, match='are splits'): as_labelled((ds.samples and [f for f, _ in ds.samples], [ds.classes[y] for _, y in ds.samples]))
    with pytest.raises(ValueError, match=re.escape(f"folders in {tmp_path/'x/archive'}: give that")): as_labelled(tree(tmp_path/'x', 'archive').resolve())

def test_datasets_of_fastai(files):
    from fastai.data.core import Datasets
    from fastai.data.transforms import Categorize, parent_label
    from fastai.vision.core import PILImage
    ds = Datasets(files, [[PILImage.create], [parent_label, Categorize()]], splits=[[0, 1, 2, 5, 6, 7], [3, 4]])
    got = as_labelled(ds)
    assert got.vocab == ['a', 'b'] and all(right(got)) and {k: len(v) for k, v in got.splits.items()} == dict(train=6, valid=2) and len(as_unlabelled(ds)[0]) == 6

def test_labels_in_frames_and_paths_from_windows(files):
    df = pd.DataFrame(dict(path=files, label=[*map(label, files)]))
    assert all(right(as_labelled((df[['path']], df[['label']]))))
    root = Path(files[0]).parents[1]
    assert all(right(as_labelled(pd.DataFrame(dict(path=[f'{label(o)}\\{Path(o).name}' for o in files], label=df.label)), root)))

def test_a_class_called_train(tmp_path):
    COLOURS.update(train=(255, 0, 0), bus=(0, 0, 255))
    for c in ('train', 'bus'): paint(tmp_path/c/'0.png', c)
    assert as_labelled(tmp_path).vocab == ['bus', 'train'] and len(as_unlabelled(tmp_path)[0]) == 2
    for p in ('Training', 'Testing'):
        for c in ('train', 'bus'): paint(tmp_path/'two'/p/c/'0.png', c)
    assert as_labelled(tmp_path/'two').vocab == ['bus', 'train']

def test_images_beside_the_splits_are_left_out(tmp_path, capsys):
    paint(tree(tmp_path, 'train', 'test')/'logo.png', 'a')
    assert len(as_labelled(tmp_path).items) == 9 and len(as_unlabelled(tmp_path)[0]) == 4
    assert capsys.readouterr().out.count('1 images beside them left out') == 2

FRAMES = dict(split=['train']*4 + ['val']*2 + ['test']*2, Subset=['Training']*4 + ['Validation']*2 + ['Testing']*2, set=['TRAIN']*4 + ['dev']*2 + ['TEST']*2,
              partition=['tr ']*4 + ['eval']*2 + ['tst']*2, Usage=['Training']*4 + ['valid']*2 + ['PublicTest']*2)
@pytest.mark.parametrize('col', FRAMES)
def test_columns_that_are_splits(files, col):
    df = pd.DataFrame(dict(path=files[::2]*2, label=[label(o) for o in files[::2]*2], **{col: FRAMES[col]}))
    assert {k: len(v) for k, v in as_labelled(df).splits.items()} == dict(train=4, valid=2, test=2) and len(as_unlabelled(df)[0]) == 4

@pytest.mark.parametrize('kw,sizes', [
    (dict(is_valid=[False]*6 + [True]*2), dict(train=6, valid=2)), (dict(valid=[0]*6 + [1]*2), dict(train=6, valid=2)), (dict(is_train=['yes']*6 + ['no']*2), dict(train=6, valid=2)),
    (dict(is_valid=[False]*6 + [True, False], is_test=[False]*7 + [True]), dict(train=6, valid=1, test=1)), (dict(fold=[1, 2]*4, is_test=[0]*7 + [1]), dict(train=7, test=1)),
    (dict(set=['base', 'jungle']*4), None), (dict(isTraining=[True]*6 + [False]*2), dict(train=6, valid=2)), (dict(train_or_test=['train']*6 + ['test']*2), dict(train=6, test=2)),
    (dict(kfold=[0, 1]*4, Phase=['train']*6 + ['val']*2), dict(train=6, valid=2)), (dict(dataset_split=['trn']*6 + ['val']*2), dict(train=6, valid=2))])
def test_columns_that_say_yes_or_no(files, kw, sizes):
    df = pd.DataFrame(dict(path=files[::2]*2, label=[label(o) for o in files[::2]*2], **kw))
    assert {k: len(v) for k, v in as_labelled(df).splits.items()} == (sizes or dict(train=8)) and len(as_unlabelled(df)[0]) == (sizes or dict(train=8))['train']

@pytest.mark.parametrize('kw,words', [(dict(fold=[0, 1, 2, 3]*2), 'which is held out'), (dict(split=[0, 1]*4), 'which is held out'), (dict(split=['train', 'extra']*4), "'extra' is no split"),
                                      (dict(split=['val', 'test']*4), 'no training images'), (dict(split=['train']*7 + [None]), '1 rows are in no split'),
                                      (dict(is_valid=[True]*8), 'no row is for training'), (dict(is_valid=[True]*7 + [None]), 'neither yes nor no'), (dict(cv_fold=[0, 1, 2, 3]*2), 'which is held out'),
                                      (dict(usage=['Training', 'Rest']*4), "'Rest' is no split")])
def test_columns_that_are_not_understood(files, kw, words):
    for read in (as_labelled, as_unlabelled):
        with pytest.raises(ValueError, match=words): read(pd.DataFrame(dict(path=files, label=[*map(label, files)], **kw)))

def test_dict_of_splits(files):
    x = np.zeros((4, 8, 8), np.uint8)
    ds = as_labelled(dict(train=(x, [0, 1]*2), validation=(x[:2], [0, 1]), test=(x[:2], [1, 0])))
    assert [len(o) for o in ds.splits.values()] == [4, 2, 2] and ds.items.shape == (8, 8, 8) and len(as_unlabelled(dict(train=x, test=x))[0]) == 4
    ds = as_labelled(dict(train=Hub(files), test=Hub(files[:2])))
    assert [len(o) for o in ds.splits.values()] == [8, 2] and ds.vocab == ['a', 'b']

def test_splits_of_a_pair(files):
    df = pd.DataFrame(dict(path=files, split=['train', 'test']*4))
    assert {k: len(v) for k, v in as_labelled((df, [*map(label, files)])).splits.items()} == dict(train=4, test=4)
    for make in (pretrain_dls, finetune_dls):
        with pytest.raises(ValueError, match='looks like an image'): make((files[:4], files[4:]), **KW)

def test_list_of_divided_folders(tmp_path):
    dirs = [tree(tmp_path/o, 'train', 'test') for o in ('one', 'two')]
    assert {k: len(v) for k, v in as_labelled(dirs).splits.items()} == dict(train=8, test=8) and len(as_unlabelled(dirs)[0]) == 8
    assert {k: len(v) for k, v in as_labelled([dirs[0]/'train', dirs[0]/'test']).splits.items()} == dict(train=4, test=4)


# Tables, names, numbers ---------------------------------------------------------------------------------------------

def table(root, sep=',', head=True, base=''):
    rows = [f'{base}{o.relative_to(root)}{sep}{o.parent.name}' for o in sorted(root.rglob('*.png'))]
    return '\n'.join([f'file{sep}label']*head + rows) + '\n'

@pytest.mark.parametrize('name,kw', [('a.csv', {}), ('a.tsv', dict(sep='\t')), ('semicolon.csv', dict(sep=';')), ('no_head.csv', dict(head=False))])
def test_table_files(tmp_path, name, kw):
    (tree(tmp_path)/name).write_text('\ufeff' + table(tmp_path, **kw), encoding='utf-8')
    ds = as_labelled(tmp_path/name)
    assert len(ds) == 4 and all(right(ds)) and len(as_unlabelled(str(tmp_path/name))[0]) == 4

def test_paths_that_begin_elsewhere(tmp_path, monkeypatch):
    df = pd.read_csv(io.StringIO(table(tree(tmp_path/'img'))))
    with pytest.raises(ValueError, match=re.escape(str(Path.cwd()))): as_labelled(df)
    some = pd.DataFrame(dict(path=[*df.file[:3], 'gone.png'], label=[*df.label]))
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path/'img/gone.png'} (no such file)")): finetune_dls(some, path=tmp_path/'img', **KW)
    assert all(right(as_labelled(df, tmp_path/'img'))) and len(pretrain_dls(df, path=tmp_path/'img', valid_pct=0, **KW).train.dataset) == 4
    monkeypatch.setenv('HOME', str(tmp_path))
    assert all(right(as_labelled(df, '~/img'))) and len(as_unlabelled('~/img')[0]) == 4 and len(as_unlabelled(['~/img/a/a0.png'])[0]) == 1
    (tmp_path/'t.csv').write_text(table(tmp_path/'img'))
    with pytest.raises(ValueError, match='4 of 4 images are not there'): as_labelled(tmp_path/'t.csv')
    assert all(right(as_labelled(tmp_path/'t.csv', tmp_path/'img')))
    for o, words in (('x.xlsx', 'read it with pandas'), ('x.csv', 'no table')):
        (tmp_path/o).write_bytes(b'')
        with pytest.raises(ValueError, match=words): as_labelled(tmp_path/o)

def test_a_name_that_is_two_things(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tree(tmp_path/'digits')
    for make in (pretrain_dls, finetune_dls):
        with pytest.raises(ValueError, match=r"'./digits' is the folder, get_dataset\('digits'\) the data set"): make('digits', **KW)
    assert len(as_unlabelled('./digits')[0]) == 4 and len(as_unlabelled(get_dataset('digits'))[0]) == 1437

STATS = ([.5], [.2])
@pytest.mark.parametrize('kw,words', [
    (dict(size='224'), "size='224'"), (dict(size=0), 'size=0'), (dict(size=None), 'size=None'), (dict(size=(8, 8, 8)), 'size='), (dict(size=8.), 'size=8.0'), (dict(size=True), 'size=True'),
    (dict(bs='32'), "bs='32'"), (dict(bs=0), 'bs=0'), (dict(valid_pct='.2'), "valid_pct='.2'"), (dict(valid_pct=20), 'for 20 % give 0.2'), (dict(valid_pct=1), 'valid_pct=1'),
    (dict(seed='1'), "seed='1'"), (dict(num_workers=-1), 'num_workers=-1'), (dict(device='gpu'), "device='gpu'"), (dict(in_chans='3'), "in_chans='3'"), (dict(resize='stretch'), "'crop', 'pad', 'squish'"),
    (dict(stats=([123.], [58.])), r'divide them by 255, stats=\(\[0.482\], \[0.227\]\)'), (dict(stats='imagenet'), "stats='imagenet'"), (dict(stats=([-.1], [.2])), 'the mean'),
    (dict(stats=([.5], [0.])), 'above 0'), (dict(idxs=[1.5]), 'idxs: whole numbers'), (dict(idxs=[[1]]), 'idxs: whole numbers')])
@pytest.mark.parametrize('make', [pretrain_dls, finetune_dls])
def test_numbers_out_of_range(make, kw, words):
    with pytest.raises(ValueError, match=words): make('digits', **{**KW, **kw})

@pytest.mark.parametrize('kw,words', [(dict(labels='100'), "labels='100'"), (dict(labels=-1), 'labels=-1'), (dict(labels=.1), 'labels=0.1'), (dict(crop_pct=2), 'crop_pct=2'), (dict(crop_pct='.9'), 'crop_pct')])
def test_numbers_of_fine_tuning(kw, words):
    with pytest.raises(ValueError, match=words): finetune_dls('digits', **{**KW, **kw})

def test_what_is_decided_is_said(tmp_path, capsys):
    for i in range(10): paint(tmp_path/'ab'[i % 2]/f'{i}.png', 'ab'[i % 2], (16, 8) if i < 4 else (8, 8))
    for make in (pretrain_dls, finetune_dls):
        make(tmp_path, **{**KW, 'bs': 7}, valid_pct=0)
        said = capsys.readouterr().out
        assert said.count("4 of 10 pictures are not square: their ends are cut off on held-out images; resize='pad' or 'squish' keeps them") == 1
        assert said.count('10 images at bs=7: 3 of them are not seen in an epoch; bs=5 sees all') == 1
        make(tmp_path, **KW, valid_pct=0, resize='pad')
        assert 'square' not in (said := capsys.readouterr().out) and 'not seen' not in said

def csv(tmp_path, *rows, head='image,label'):
    (tmp_path/'t.csv').write_text('\n'.join([head, *rows]))
    return tmp_path/'t.csv'

def test_labels_of_a_text_file_as_they_are_written(tmp_path, files, capsys):
    for words, mean in ((('10', '9'), [10, 9]), (('1.0', '2.0'), [1, 2]), (('01', '10'), ['01', '10']), (('0001', 'x'), ['0001', 'x']), (('007', '7'), ['007', '7']),
                        (('9'*22 + '1', '9'*22 + '2'), ['9'*22 + '1', '9'*22 + '2'])):
        ds = as_labelled(csv(tmp_path, *(f'{f},{words[i % 2]}' for i, f in enumerate(files))))
        assert ds.vocab == sorted(mean) and [ds.vocab[i] for i in ds.labels] == mean*4
        assert ('are one number' in capsys.readouterr().out) == (words[0] == '007')
    for words, match in ((('1', '1.0'), 'are one number'), (('1e3', '1000'), 'are one number'), (('.25', '.5'), 'numbers from')):
        with pytest.raises(ValueError, match=match): as_labelled(csv(tmp_path, *(f'{f},{words[i % 2]}' for i, f in enumerate(files))))
    ds = as_labelled(csv(tmp_path, *(f'{f},{"ab"[i % 2]},{int(i > 5)}' for i, f in enumerate(files)), head='image,label,is_valid'))
    assert [len(o) for o in ds.splits.values()] == [6, 2]

def test_folders_are_classes_whatever_they_are_called(tmp_path):
    for names in (('nan', 'b'), ('cat', 'cat dog', 'dog'), ('a,b', 'a', 'b'), ('[x]', 'y'), ('0.5', '0.25')):
        for k, o in enumerate(names): paint(tmp_path/names[0]/o/'1.png', 'a')
        assert as_labelled(tmp_path/names[0]).vocab == sorted(names) == as_labelled([tmp_path/names[0]/o for o in names]).vocab
    one, two = unicodedata.normalize('NFC', 'é'), unicodedata.normalize('NFD', 'é')
    for o in (f'e/{two}', 'e/x', 'f/x'): paint(tmp_path/o/'1.png', 'a')
    assert as_labelled(tmp_path/'e').vocab == ['x', one] == class_names(['x', two])

def test_the_same_folders_in_several(tmp_path, capsys):
    for o in ('2022/a', '2022/b', '2023/a', '2023/b', '2023/c'): paint(tmp_path/'y'/o/'1.png', 'a')
    with pytest.raises(ValueError, match='which folders are the classes.*a list of folders'): as_labelled(tmp_path/'y')
    assert len(as_unlabelled(tmp_path/'y')[0]) == 5 and as_labelled([tmp_path/'y/2022', tmp_path/'y/2023']).vocab == ['a', 'b', 'c']

def test_a_file_twice(files, capsys):
    as_labelled((files + files[:1], [*map(label, files + files[:1])])), as_unlabelled(files + [os.path.relpath(files[0])])
    assert capsys.readouterr().out.count('a second time') == 2
    with pytest.raises(ValueError, match="twice, with the labels"): as_labelled((files + files[:1], [*map(label, files), 'c']))

def test_sentences_for_what_is_no_source(tmp_path, files, capsys):
    (tmp_path/'x.zip').touch()
    df = pd.DataFrame(dict(path=files, label=[*map(label, files)]))
    for o, words in (('https://e.com/photos', 'is an address'), ('s3://b/x.zip', 'is an address'), (str(tmp_path/'x.zip'), 'unpack it'), (str(tmp_path/'*.png'), 'glob'),
                     ((files, {f: 'a' for f in files}), 'labels by place'), ((files, label), 'labels by place'), (pd.concat([df, df[['label']]], axis=1), 'rename them')):
        with pytest.raises(ValueError, match=words): as_labelled(o)
    for col in ('set', 'subset', 'group'): as_labelled(df.assign(**{col: ['A', 'B']*4}))
    assert capsys.readouterr().out.count('is not taken for a split: A, B') == 3
