// The values of a chart under the pointer, read back from the curves themselves.
for (const svg of document.querySelectorAll('.chart > svg')) {
  const numbers = name => svg.dataset[name].split(' ').map(Number);
  const [left, right, top, bottom] = numbers('box'), [x0, x1] = numbers('x'), [y0, y1] = numbers('y');
  const readout = document.createElement('div'), cursor = svg.querySelector('.axis').cloneNode();
  readout.className = 'readout';
  cursor.setAttribute('class', 'cursor');
  const hide = () => { readout.remove(); cursor.remove(); };
  svg.addEventListener('pointerleave', hide);
  svg.addEventListener('pointermove', event => {
    const x = new DOMPoint(event.clientX, 0).matrixTransform(svg.getScreenCTM().inverse()).x;
    let near = null;
    for (const line of svg.querySelectorAll('polyline'))
      for (const p of line.points)
        if (near === null || Math.abs(p.x - x) < Math.abs(near - x)) near = p.x;
    if (near === null) return;
    const lines = ['step ' + Math.round(x0 + (near - left) / (right - left) * (x1 - x0)).toLocaleString()];
    for (const line of svg.querySelectorAll('polyline'))
      for (const p of line.points)
        if (p.x === near) {
          const y = y0 + (bottom - p.y) / (bottom - top) * (y1 - y0);
          lines.push(line.dataset.label + ' ' + y.toPrecision(3));
          break;
        }
    readout.textContent = lines.join('\n');
    cursor.setAttribute('x1', near); cursor.setAttribute('x2', near);
    cursor.setAttribute('y1', top); cursor.setAttribute('y2', bottom);
    svg.append(cursor);
    svg.parentNode.append(readout);
  });
}
