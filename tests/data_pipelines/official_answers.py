"""What an import of each made-up official tree must find: (file, person, camera, clothes, modality) per split."""

from __future__ import annotations

Answer = dict[str, list[tuple[str, str, int, int, int]]]


def plain(file: str, person: str, camera: int, clothes: int = -1, modality: int = 0) -> tuple[str, str, int, int, int]:
    return file, person, camera, clothes, modality


PRCC = {
    "train": [
        plain("rgb/train/001/A_cropped_rgb001.jpg", "prcc/0001", 0, 0),
        plain("rgb/train/001/B_cropped_rgb010.jpg", "prcc/0001", 1, 0),
        plain("rgb/train/001/C_cropped_rgb020.jpg", "prcc/0001", 2, 1),
        plain("rgb/train/012/C_cropped_rgb001.jpg", "prcc/0012", 2, 1),
    ],
    "query": [  # camera B first: protocol prcc_same, then camera C: prcc_cross
        plain("rgb/test/B/005/cropped_rgb001.jpg", "prcc/0005", 1, 0),
        plain("rgb/test/B/016/cropped_rgb001.jpg", "prcc/0016", 1, 0),
        plain("rgb/test/C/005/cropped_rgb001.jpg", "prcc/0005", 2, 1),
    ],
    "gallery": [
        plain("rgb/test/A/005/cropped_rgb001.jpg", "prcc/0005", 0, 0),
        plain("rgb/test/A/005/cropped_rgb002.jpg", "prcc/0005", 0, 0),
        plain("rgb/test/A/016/cropped_rgb001.jpg", "prcc/0016", 0, 0),
    ],
}
LTCC = {
    "train": [
        plain("LTCC_ReID/train/000_1_c10_000001.png", "ltcc/0000", 9, 1),
        plain("LTCC_ReID/train/000_2_c3_015833.png", "ltcc/0000", 2, 2),
    ],
    "query": [plain("LTCC_ReID/query/001_1_c5_015874.png", "ltcc/0001", 4, 1)],
    "gallery": [
        plain("LTCC_ReID/test/001_1_c12_000001.png", "ltcc/0001", 11, 1),
        plain("LTCC_ReID/test/001_3_c5_000001.png", "ltcc/0001", 4, 3),
    ],
}
VCCLOTHES = {
    "train": [plain("train/0001-02-01-07.jpg", "vcclothes/0001", 1, 1)],
    "query": [plain("query/0300-03-02-01.jpg", "vcclothes/0300", 2, 2)],
    "gallery": [
        plain("gallery/0300-04-03-02.jpg", "vcclothes/0300", 3, 3),
        plain("gallery/0301_01_02_05.jpg", "vcclothes/0301", 0, 2),  # the other way of writing names
    ],
}
SYSU = {
    "train": [
        plain("cam1/0001/0001.jpg", "sysu_mm01/0001", 0),
        plain("cam3/0001/0001.jpg", "sysu_mm01/0001", 2, modality=1),
        plain("cam6/0020/0001.jpg", "sysu_mm01/0020", 5, modality=1),  # of val_id.txt
    ],
    "query": [
        plain("cam3/0006/0001.jpg", "sysu_mm01/0006", 2, modality=1),
        plain("cam6/0006/0001.jpg", "sysu_mm01/0006", 5, modality=1),
    ],
    "gallery": [
        plain("cam2/0006/0001.jpg", "sysu_mm01/0006", 1),
        plain("cam2/0006/0002.jpg", "sysu_mm01/0006", 1),
        plain("cam5/0010/0001.jpg", "sysu_mm01/0010", 4),
    ],
}
LLCM = {
    "train": [
        plain("vis/0003/0003_c07_s184229_f3600_vis.jpg", "llcm/0003", 6),
        plain("nir/0003/0003_c01_s184229_f3600_nir.jpg", "llcm/0003", 0, modality=1),
    ],
    "test": [  # by person, then visible before infrared, then camera; camera numbers agree across modalities
        plain("test_vis/cam3/0001/a.jpg", "llcm/0001", 2),
        plain("test_nir/cam2/0001/a.jpg", "llcm/0001", 1, modality=1),
        plain("test_vis/cam1/0008/a.jpg", "llcm/0008", 0),
        plain("test_vis/cam1/0008/b.jpg", "llcm/0008", 0),
        plain("test_nir/cam2/0008/b.jpg", "llcm/0008", 1, modality=1),
    ],
}
CUHK01 = {
    "train": [plain(f"campus/{pid:04}001.png", f"cuhk01/{pid:04}", 0) for pid in range(1, 485)]
    + [plain("campus/0485003.png", "cuhk01/0485", 1)],
    "query": [plain("campus/0486001.png", "cuhk01/0486", 0), plain("campus/0486002.png", "cuhk01/0486", 0)],
    "gallery": [plain("campus/0486003.png", "cuhk01/0486", 1), plain("campus/0971004.png", "cuhk01/0971", 1)],
}


MARKET_PEOPLE = {
    "train": {
        "0002": (1, 1, 2, 2, 2, 1, 1, 1, 1, 2, "red", "blue"),
        "0007": (2, 2, 1, 1, 1, 2, 2, 1, 2, 3, None, "black"),
    },
    "test": {"0001": (2, 2, 2, 2, 1, 1, 1, 1, 2, 2, "white", "white")},
}
MARKET = {
    "train": [
        plain("bounding_box_train/0002_c1s1_000451_03.jpg", "market1501/0002", 0, 0),
        plain("bounding_box_train/0007_c6s3_000001_00.jpg", "market1501/0007", 5, 0),
    ],
    "query": [plain("query/0001_c1s1_001051_00.jpg", "market1501/0001", 0, 0)],
    "gallery": [plain("bounding_box_test/0001_c2s1_000301_01.jpg", "market1501/0001", 1, 0)],
}


PEDES = {
    "train": [
        plain("CUHK01/0363004.png", "cuhk01/0363", 1),
        plain("train_query/p8848_s17661.jpg", "cuhk_pedes/0002", 0),
    ],
    "query": [
        plain("Market/0535_c1s3_005146_00.jpg", "market1501/0535", -1),
        plain("Market/0535_c1s3_005146_00.jpg", "market1501/0535", -1),
        plain("CUHK03/672_1.jpg", "cuhk03/0672", -1),
        plain("cam_a/350_45.bmp", "cuhk_pedes/12021", -1),
    ],
    "gallery": [
        plain("Market/0535_c1s3_005146_00.jpg", "market1501/0535", 0),
        plain("CUHK03/672_1.jpg", "cuhk03/0672", -2),
        plain("cam_a/350_45.bmp", "cuhk_pedes/12021", -2),
    ],
}
PEDES_PART = {
    "train": [
        plain("Market/0002_c4s1_000776_00.jpg", "market1501/0002", 3),
        plain("CUHK01/0363004.png", "cuhk01/0363", 1),
    ],
    "query": [
        plain("CUHK01/0486001.png", "cuhk01/0486", -1),
        plain("Market/0001_c3s1_000551_00.jpg", "market1501/0001", -1),
        plain("Market/0001_c3s1_000551_00.jpg", "market1501/0001", -1),
    ],
    "gallery": [
        plain("CUHK01/0486001.png", "cuhk01/0486", 0),
        plain("Market/0001_c3s1_000551_00.jpg", "market1501/0001", 2),
    ],
}
SYNTH = {
    "train": [
        plain("Part1/3/0.jpg", "synth_pedes/0003", 0),
        plain("Part2/ä/1.jpg", "synth_pedes/0003", 0),
        plain("Part2/41/0.jpg", "synth_pedes/0041", 0),
    ]
}
REAL1 = {
    "train": [
        plain("COCAS/a/1.jpg", "cocas_real1/0004", 0, 2),
        plain("COCAS/b/1.jpg", "cocas_real1/0012", 3, 0),
    ]
}
REAL2 = {
    "query": [plain("img/q1.jpg", "cocas_real2/0009", 2, 1)],
    "gallery": [
        plain("img/g1.jpg", "cocas_real2/0009", 1, 1),
        plain("img/g2.jpg", "cocas_real2/0009", 4, 1),
        plain("img/g3.jpg", "cocas_real2/0010", 4, 0),
    ],
}
