"""How good the results are: metrics, baselines, the four protocols, and numeric parity.

Nothing is imported here, so that `pikfix.evaluation.parity` stays free of torch:

- `parity`: PSNR, largest and worst-tile difference of two arrays (numpy only);
- `metrics`: PSNR, SSIM, colourfulness, CIEDE2000, LPIPS where its weights are present;
- `baselines`: what any model has to beat;
- `pictures`: the protocols' crops, and sibling references;
- `choosers`: how an automatic reference is found;
- `protocols`: `evaluate`; `report`: table, JSON and contact sheet.
"""
