// The value under the pointer, and under the arrow keys, of every curve.
for (const figure of document.querySelectorAll("figure[data-points]")) {
  const points = JSON.parse(figure.dataset.points);
  const plot = figure.querySelector(".plot");
  const output = figure.querySelector("output");
  const cursor = plot.querySelector(".cursor");
  let at = points.length - 1;
  const show = (i) => {
    at = Math.max(0, Math.min(points.length - 1, i));
    const [x, y, label] = points[at];
    cursor.hidden = false;
    cursor.style.left = x + "%";
    cursor.firstElementChild.style.top = y + "%";
    output.textContent = label;
  };
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    const x = (100 * (event.clientX - box.left)) / box.width;
    let nearest = 0;
    points.forEach((point, i) => {
      if (Math.abs(point[0] - x) < Math.abs(points[nearest][0] - x)) nearest = i;
    });
    show(nearest);
  });
  plot.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (move) { event.preventDefault(); show(at + move); }
  });
}
